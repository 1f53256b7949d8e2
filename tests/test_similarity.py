"""Similarities on plain arrays."""

from __future__ import annotations

import numpy as np
import pytest

from aioembed.errors import InvalidConfig, WrongDimensions
from aioembed.similarity import cosine_similarity, dot_product, quantize

RNG = np.random.default_rng(7)
A = RNG.normal(size=(3, 8)).astype(np.float32)
B = RNG.normal(size=(5, 8)).astype(np.float32)


def test_two_vectors_give_a_float() -> None:
    assert dot_product([1.0, 2.0], [3.0, 4.0]) == 11.0
    assert isinstance(cosine_similarity(A[0], B[0]), float)


def test_matrices_give_every_pair() -> None:
    products = dot_product(A, B)
    assert isinstance(products, np.ndarray)
    assert products.shape == (3, 5)
    np.testing.assert_allclose(products, A @ B.T, rtol=1e-6)
    for row, column in np.ndindex(3, 5):
        expected = A[row] @ B[column] / np.linalg.norm(A[row]) / np.linalg.norm(B[column])
        assert cosine_similarity(A[row], B[column]) == pytest.approx(float(expected), abs=1e-6)


def test_a_matrix_and_a_vector_give_a_vector() -> None:
    assert np.shape(cosine_similarity(A, B[0])) == (3,)
    assert np.shape(cosine_similarity(A[0], B)) == (5,)


def test_the_cosine_ignores_length_and_stays_within_one() -> None:
    assert cosine_similarity(A[0], 1000 * A[0]) == pytest.approx(1.0)
    assert cosine_similarity(A[0], -A[0]) == pytest.approx(-1.0)
    assert np.abs(cosine_similarity(A, A)).max() <= 1.0


def test_a_zero_vector_is_similar_to_nothing() -> None:
    assert cosine_similarity(np.zeros(8), A[0]) == 0.0


def test_integers_are_computed_as_floats() -> None:
    assert cosine_similarity([200, 0], np.array([100, 100], np.uint8)) == pytest.approx(0.5**0.5)
    assert dot_product(np.array([200], np.uint8), np.array([200], np.uint8)) == 40000.0


def test_different_dimensions_name_both() -> None:
    with pytest.raises(WrongDimensions, match="512 and 768"):
        cosine_similarity(np.zeros(512), np.zeros(768))


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2)), np.float32(3), np.array(["a", "b"])])
def test_a_value_that_is_not_a_vector_or_matrix_of_numbers_is_refused(bad: object) -> None:
    with pytest.raises(WrongDimensions, match="vectors"):
        dot_product(bad, np.zeros(2))  # type: ignore[call-overload]


def test_quantized_vectors_have_the_levels_that_servers_give() -> None:
    vector = np.array([1.0, -1.0, 0.0, 0.5, -0.5, 0.004, -0.004, 1e-9, 0.3], np.float32)
    assert quantize(vector, "int8").tolist() == [127, -127, 0, 64, -64, 1, -1, 0, 38]
    assert quantize(vector, "uint8").tolist() == [255, 1, 128, 192, 64, 129, 127, 128, 166]
    assert quantize(vector, "ubinary").tolist() == [0b10010101, 0b10000000]
    assert quantize(vector, "binary").tolist() == [0b10010101 - 128, 0]
    matrix = np.stack([vector, -vector])
    for kind in ("int8", "uint8", "binary", "ubinary"):
        rows = quantize(matrix, kind)
        assert rows.dtype == (np.int8 if kind in {"int8", "binary"} else np.uint8)
        assert rows[0].tolist() == quantize(vector, kind).tolist()


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(WrongDimensions):
        quantize(["a"], "int8")
    with pytest.raises(InvalidConfig, match="vector_type"):
        quantize([1.0], "int4")  # type: ignore[arg-type]
