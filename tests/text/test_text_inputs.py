"""Token ids as a program's inputs, alone and together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed._loader import LoadedModel
from aioembed._signature import ModelContract
from aioembed._text_inputs import TextInputs
from aioembed.models import EmbeddingSpace
from aioembed.runtime import MethodInfo, TensorInfo
from aioembed.tokenize import Tokenizer

_IDS = np.array([622, 0, 5, 623])


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


def test_the_mask_hides_token_zero_as_the_hook_does(tokenizer: Tokenizer) -> None:
    inputs = TextInputs(tokenizer, limit=77, length=None, dtypes=("int64", "int64"))
    ids, mask = inputs.tensors(_IDS)
    assert ids.tolist() == [[622, 0, 5, 623]]
    assert mask.tolist() == [[1, 0, 1, 1]]
    assert ids.dtype == mask.dtype == np.int64


def test_a_program_of_one_length_gets_zeros_behind_the_end(tokenizer: Tokenizer) -> None:
    inputs = TextInputs(tokenizer, limit=77, length=6, dtypes=("int64", "int64"))
    ids, mask = inputs.tensors(_IDS)
    assert ids.tolist() == [[622, 0, 5, 623, 0, 0]]
    assert mask.tolist() == [[1, 0, 1, 1, 0, 0]]


def test_a_program_without_a_mask_gets_none_and_its_own_dtype(tokenizer: Tokenizer) -> None:
    inputs = TextInputs(tokenizer, limit=77, length=None, dtypes=("int32",))
    (ids,) = inputs.tensors(_IDS)
    assert ids.dtype == np.int32
    assert ids.flags.c_contiguous


def test_a_cut_text_ends_with_its_end_token(tokenizer: Tokenizer) -> None:
    inputs = TextInputs(tokenizer, limit=5, length=None, dtypes=("int64",))
    tokens = inputs.encode("a photo of a cat and a dog")
    assert len(tokens.ids) == 5
    assert tokens.ids[-1] == 623
    assert tokens.count > 5


class _Recording:
    """Stands in for a program that takes a batch of texts of one length."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.completion_fd, self._ended = os.pipe()
        self._ids: NDArray[np.int64] = np.zeros((0, 0), np.int64)

    def start(self, ids: NDArray[np.int64], method: str = "forward") -> None:
        self.calls.append((method, ids.shape))
        self._ids = ids
        os.write(self._ended, b"x")

    def collect(self) -> tuple[NDArray[Any]]:
        os.read(self.completion_fd, 1)
        return (np.eye(8, dtype=np.float32)[self._ids[:, 0]],)


def _batching_model(program: Any) -> LoadedModel:
    forward = MethodInfo(
        "forward",
        inputs=(TensorInfo((1, 77), "int64", dynamic=True),),
        outputs=(TensorInfo((1, 8), "float32"),),
    )
    contract = ModelContract(
        modality="text",
        preprocessing=None,
        embedding_dim=8,
        normalized=True,
        space=EmbeddingSpace(base="tiny"),
        forward=forward,
        batch_method="forward_batch",
        max_batch=4,
        metadata=None,
    )
    return LoadedModel([program], contract)


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [
        ([3, 3], [("forward_batch", (2, 3))]),
        ([3, 5], [("forward", (1, 3)), ("forward", (1, 5))]),
    ],
)
@pytest.mark.anyio
async def test_only_texts_of_one_length_go_into_one_call(
    lengths: list[int], calls: list[tuple[str, tuple[int, int]]]
) -> None:
    program = _Recording()
    batch = [(np.full((1, length), place),) for place, length in enumerate(lengths)]
    model = _batching_model(program)
    vectors = await model.run(model.programs[0], batch)
    assert program.calls == calls
    assert [int(vector.argmax()) for vector in vectors] == [0, 1]
