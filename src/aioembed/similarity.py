"""Similarities and compact forms of embeddings, on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidConfig, WrongDimensions

__all__ = ["Embedding", "Embeddings", "VectorType", "cosine_similarity", "dot_product", "quantize"]

VectorType = Literal["int8", "uint8", "binary", "ubinary"]
"""A compact form of a vector of length 1; see `quantize`."""

Embedding = np.ndarray[tuple[int], np.dtype[np.float32]]
"""float32 `(embedding_dim,)`."""

Embeddings = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""float32 `(n, embedding_dim)`."""

_Floats = NDArray[np.float32] | NDArray[np.float64]
_Vector = np.ndarray[tuple[int], np.dtype[Any]] | Sequence[float]
_Matrix = np.ndarray[tuple[int, int], np.dtype[Any]] | Sequence[Embedding]


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


@overload
def dot_product(a: _Vector, b: _Vector) -> float: ...
@overload
def dot_product(a: _Matrix, b: _Vector | _Matrix) -> _Floats: ...
@overload
def dot_product(a: _Vector, b: _Matrix) -> _Floats: ...
@overload
def dot_product(a: ArrayLike, b: ArrayLike) -> _Floats | float: ...
def dot_product(a: ArrayLike, b: ArrayLike) -> _Floats | float:
    """Return the dot products of the rows of `a` and `b`.

    Args:
        a: Vector `(dim,)` or matrix `(n, dim)`, of any numeric dtype.
        b: Vector `(dim,)` or matrix `(m, dim)`.

    Returns:
        A float for two vectors, `(n,)` or `(m,)` for a matrix and a vector, `(n, m)` for two
        matrices; float32, or float64 where an operand is.

    Raises:
        WrongDimensions: The dimensions differ, or an operand is not a vector or matrix of numbers.
    """
    left, right = _operands(a, b)
    products = left @ right.T
    return float(products) if products.ndim == 0 else products


@overload
def cosine_similarity(a: _Vector, b: _Vector) -> float: ...
@overload
def cosine_similarity(a: _Matrix, b: _Vector | _Matrix) -> _Floats: ...
@overload
def cosine_similarity(a: _Vector, b: _Matrix) -> _Floats: ...
@overload
def cosine_similarity(a: ArrayLike, b: ArrayLike) -> _Floats | float: ...
def cosine_similarity(a: ArrayLike, b: ArrayLike) -> _Floats | float:
    """Return the cosines of the angles between the rows of `a` and `b`, from -1 to 1.

    Args:
        a: Vector `(dim,)` or matrix `(n, dim)`, of any numeric dtype and any length.
        b: Vector `(dim,)` or matrix `(m, dim)`.

    Returns:
        As `dot_product`. A vector of length 0 has cosine 0 to every other.

    Raises:
        WrongDimensions: The dimensions differ, or an operand is not a vector or matrix of numbers.
    """
    left, right = _operands(a, b)
    products = _unit(left) @ _unit(right).T
    clipped = np.clip(products, -1.0, 1.0)
    return float(clipped) if clipped.ndim == 0 else clipped


def quantize(vectors: ArrayLike, vector_type: VectorType) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Return vectors in a compact form, as Cohere's, Jina's and other embedding servers do.

    `int8` is 127 x, rounded; `uint8` is `int8` + 128. `ubinary` has the signs, 1 for values above
    0, eight to a byte, the first value in the highest bit, zeros at the end; `binary` is
    `ubinary` - 128. The Hamming distance of two packed vectors orders much as the cosine does.

    Args:
        vectors: `(dim,)` or `(n, dim)`, of length 1: each value is from -1 to 1.
        vector_type: The form.

    Returns:
        int8 (`int8`, `binary`) or uint8 (`uint8`, `ubinary`), of the shape of `vectors`; for the
        packed ones the last axis has `ceil(dim / 8)` values.

    Raises:
        WrongDimensions: Not a vector or matrix of numbers.
        InvalidConfig: No such form.
    """
    values, _ = _operands(vectors, vectors)
    if vector_type in {"int8", "uint8"}:
        levels: NDArray[np.int16] = np.rint(np.clip(values, -1.0, 1.0) * 127).astype(np.int16)
        return levels.astype(np.int8) if vector_type == "int8" else (levels + 128).astype(np.uint8)
    if vector_type in {"binary", "ubinary"}:
        packed: NDArray[np.uint8] = np.packbits(values > 0, axis=-1)
        if vector_type == "ubinary":
            return packed
        return (packed.astype(np.int16) - 128).astype(np.int8)
    raise InvalidConfig(f"vector_type must be int8, uint8, binary or ubinary, not {vector_type!r}")


def _unit(rows: _Floats) -> _Floats:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
