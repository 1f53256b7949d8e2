"""Short forms of vectors, so that the first pass of a search reads little.

A sketch holds a vector's coordinates along the directions in which the vectors of an index differ
most (their principal components). Those of photographs lie close to few directions, so that the
nearest vectors are among the nearest sketches; their exact similarities decide in the second pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Basis", "unit"]

Floats = NDArray[np.float32]

_DIRECTIONS = 128


@dataclass(frozen=True, slots=True)
class Basis:
    """Where sketches are taken.

    Attributes:
        mean: `(dim,)`, of the vectors it was made from.
        directions: `(dim, n)`, of length 1 and at right angles.
        made_for: How many vectors the index had then.
    """

    mean: Floats
    directions: Floats
    made_for: int

    @classmethod
    def of(cls, sample: Floats, count: int) -> Basis:
        """Make the basis that suits some vectors.

        Args:
            sample: `(n, dim)`, each of length 1; some thousands of the index's vectors.
            count: How many vectors the index has.
        """
        mean = sample.mean(axis=0)
        centred = sample - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
        return cls(mean, np.ascontiguousarray(vectors[:, -_DIRECTIONS:]), count)

    def sketch(self, rows: Floats) -> NDArray[np.float16]:
        """Return the sketches `(n, directions)` of vectors `(n, dim)` of length 1."""
        return ((rows - self.mean) @ self.directions).astype(np.float16)


def unit(rows: Floats) -> Floats:
    """Return vectors scaled to length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)
