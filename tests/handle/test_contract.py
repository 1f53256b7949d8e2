"""What a program must take and give to be a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import CLIP_PREPROCESSING, ImageEmbeddings, ModelSpec
from aioembed._signature import ModelContract, read_contract
from aioembed.errors import InvalidModelOutput, InvalidProgram, ModelError, WrongDimensions
from aioembed.models import local_path
from aioembed.runtime import Program

from ..programs import TINY_IMAGE

_PROGRAMS = Path(__file__).resolve().parents[1] / "runtime" / "programs"


@pytest.fixture(scope="module")
def contract() -> ModelContract:
    path = local_path(TINY_IMAGE)
    assert path is not None
    return read_contract(Program.load(path), TINY_IMAGE, file_sha256=lambda: "0")


@pytest.mark.parametrize(
    "output",
    [
        np.ones((1, 511), np.float32),
        np.ones((2, 512), np.float32),
        np.ones((1, 512), np.float64),
        np.zeros((1, 512), np.float32),
        np.full((1, 512), np.nan, np.float32),
        np.full((1, 512), np.inf, np.float32),
    ],
    ids=["short", "long", "float64", "zeros", "nan", "inf"],
)
def test_an_output_that_is_not_an_embedding_is_refused(
    contract: ModelContract, output: NDArray[np.float32]
) -> None:
    with pytest.raises(InvalidModelOutput):
        contract.embeddings(output, 1)


def test_vectors_of_another_length_are_made_unit_vectors(contract: ModelContract) -> None:
    raw = dataclasses.replace(contract, normalized=False)
    rows = raw.embeddings(np.full((2, 512), 3, np.float32), 2)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["add.pte", "masked_lookup.pte", "linear_xnnpack.pte"])
async def test_a_program_that_takes_no_image_is_refused(name: str) -> None:
    async with ImageEmbeddings(_PROGRAMS / name) as model:
        with pytest.raises(ModelError, match=r"takes|shape|dtype"):
            await model.load()
        assert isinstance(model.state.error, InvalidProgram | WrongDimensions)


@pytest.mark.anyio
async def test_preprocessing_that_does_not_fit_names_both_shapes() -> None:
    async with ImageEmbeddings(TINY_IMAGE, preprocessing=CLIP_PREPROCESSING) as model:
        with pytest.raises(WrongDimensions, match=r"224.*32"):
            await model.load()


@pytest.mark.anyio
async def test_another_dimension_than_the_spec_claims_is_refused() -> None:
    path = local_path(TINY_IMAGE)
    spec = ModelSpec(name="x", source=str(path), modality="image", embedding_dim=256)
    async with ImageEmbeddings(spec) as model:
        with pytest.raises(WrongDimensions, match=r"512.*256"):
            await model.load()
