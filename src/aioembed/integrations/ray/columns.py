"""What goes into a batch's columns and what comes out of them, as Arrow has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aioembed.errors import InvalidConfig

__all__ = ["Columns", "Outcome"]

Outcome = NDArray[np.float32] | str
"""A row's vector, or its error."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a batch's columns.

    Attributes:
        image: What is embedded; stays as it is, unless it is to be dropped.
        embedding: Gets the vectors, null where a row failed.
        error: Gets the error of each row that failed, null elsewhere.
    """

    image: str
    embedding: str
    error: str

    def items(self, batch: pa.Table) -> list[Any]:
        """Return the images of a batch.

        Raises:
            InvalidConfig: There is no such column.
        """
        if self.image not in batch.column_names:
            raise InvalidConfig(
                f"there is no column {self.image!r}, only {', '.join(batch.column_names)}"
            )
        return [item for chunk in batch[self.image].chunks for item in _values(chunk)]

    def extended(
        self, batch: pa.Table, outcomes: Sequence[Outcome], dim: int, *, keep: bool
    ) -> pa.Table:
        """Return a batch with what came of its rows.

        Args:
            batch: What was embedded.
            outcomes: One for each row.
            dim: Values per vector.
            keep: Whether the images stay in it.
        """
        failed = np.array([isinstance(outcome, str) for outcome in outcomes], bool)
        vectors = np.zeros((len(outcomes), dim), np.float32)
        for row, outcome in enumerate(outcomes):
            if not isinstance(outcome, str):
                vectors[row] = outcome
        embeddings = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), dim, mask=pa.array(failed)
        )
        errors = [outcome if isinstance(outcome, str) else None for outcome in outcomes]
        replaced = {self.embedding, self.error} | (set() if keep else {self.image})
        kept = batch.select([name for name in batch.column_names if name not in replaced])
        return kept.append_column(self.embedding, embeddings).append_column(
            self.error, pa.array(errors, pa.string())
        )


def _values(chunk: pa.Array) -> list[Any]:
    """Rows of a column; Ray's own tensor columns become one array for each row."""
    if isinstance(chunk, pa.ExtensionArray):
        return list(chunk.to_numpy(zero_copy_only=False))
    values: list[Any] = chunk.to_pylist()
    return values
