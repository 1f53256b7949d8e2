"""Embeddings as JSON, NumPy and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aioembed.errors import AioembedError

from .batch import Batch

__all__ = ["EmbeddingFormat", "encode_batch", "error_record", "to_csv", "to_json"]


class EmbeddingFormat(StrEnum):
    """What `embed` can write."""

    JSON = "json"
    """One object: model, space, dimension, and for each input its embedding or its error."""
    NPY = "npy"
    """A float32 array `(inputs, dim)`; an input that failed is a row of NaN."""
    CSV = "csv"
    """A header, then a line for each input that was embedded."""


def encode_batch(batch: Batch, form: EmbeddingFormat) -> bytes:
    """Return a batch in one of the formats; every float32 reads back as the same float32."""
    return _ENCODERS[form](batch)


def error_record(error: AioembedError) -> dict[str, Any]:
    """Return an error for JSON: its type, its code and its message."""
    return {"type": type(error).__name__, "code": error.code, "message": str(error)}


def to_json(document: object) -> bytes:
    """Return a document as JSON in UTF-8 with a line end."""
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


def to_csv(rows: list[list[Any]]) -> bytes:
    """Return rows as CSV (RFC 4180 quoting) in UTF-8 with bare line feeds."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _json(batch: Batch) -> bytes:
    results = [
        {"input": one.name, "error": error_record(one.error)}
        if one.error is not None
        else {"input": one.name, "embedding": _shortest(one.embedding)}
        for one in batch.outcomes
    ]
    head = {"model": batch.model, "space_id": batch.space_id, "dim": batch.dim}
    return to_json({**head, "results": results})


def _npy(batch: Batch) -> bytes:
    missing = np.full(batch.dim, np.nan, dtype=np.float32)
    rows = [missing if one.embedding is None else one.embedding for one in batch.outcomes]
    file = io.BytesIO()
    np.save(file, np.stack(rows))
    return file.getvalue()


def _csv(batch: Batch) -> bytes:
    header = ["input", *(f"e{index}" for index in range(batch.dim))]
    return to_csv([header, *([name, *_shortest(vector)] for name, vector in batch.embedded)])


def _shortest(vector: NDArray[np.float32] | None) -> list[float]:
    """Doubles that print with no more digits than the float32 values need."""
    return [] if vector is None else [float(str(value)) for value in vector]


_ENCODERS: Mapping[EmbeddingFormat, Callable[[Batch], bytes]] = MappingProxyType(
    {EmbeddingFormat.JSON: _json, EmbeddingFormat.NPY: _npy, EmbeddingFormat.CSV: _csv}
)
