"""Similarities of embeddings, on plain arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import WrongDimensions

__all__ = ["cosine_similarity", "dot_product"]

_Floats = NDArray[np.float32] | NDArray[np.float64]


def _operands(a: ArrayLike, b: ArrayLike) -> tuple[_Floats, _Floats]:
    left, right = np.asarray(a), np.asarray(b)
    for array in (left, right):
        if array.ndim not in {1, 2} or array.dtype.kind not in "fiu":
            raise WrongDimensions(
                f"embeddings are numeric vectors (dim,) or matrices (n, dim); "
                f"got shape {array.shape}, dtype {array.dtype}"
            )
    if left.shape[-1] != right.shape[-1]:
        raise WrongDimensions(
            f"embeddings of {left.shape[-1]} and {right.shape[-1]} dimensions cannot be compared; "
            "are they of the same model?"
        )
    dtype = np.result_type(left.dtype, right.dtype, np.float32)
    return left.astype(dtype, copy=False), right.astype(dtype, copy=False)


def dot_product(a: ArrayLike, b: ArrayLike) -> _Floats | float:
    """Return the dot products of the rows of `a` and `b`.

    Args:
        a: Vector `(dim,)` or matrix `(n, dim)`, of any numeric dtype.
        b: Vector `(dim,)` or matrix `(m, dim)`.

    Returns:
        A float for two vectors, `(n,)` or `(m,)` for a matrix and a vector, `(n, m)` for two
        matrices; float32, or float64 where an operand is.

    Raises:
        WrongDimensions: The dimensions differ, or an operand is no vector or matrix of numbers.
    """
    left, right = _operands(a, b)
    products = left @ right.T
    return float(products) if products.ndim == 0 else products


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> _Floats | float:
    """Return the cosines of the angles between the rows of `a` and `b`, from -1 to 1.

    Args:
        a: Vector `(dim,)` or matrix `(n, dim)`, of any numeric dtype and any length.
        b: Vector `(dim,)` or matrix `(m, dim)`.

    Returns:
        As `dot_product`. A vector of length 0 has cosine 0 to every other.

    Raises:
        WrongDimensions: The dimensions differ, or an operand is no vector or matrix of numbers.
    """
    left, right = _operands(a, b)
    products = _unit(left) @ _unit(right).T
    clipped = np.clip(products, -1.0, 1.0)
    return float(clipped) if clipped.ndim == 0 else clipped


def _unit(rows: _Floats) -> _Floats:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
