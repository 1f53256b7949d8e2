"""The text handle, on both event loops."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed import CLIP_PREPROCESSING, ModelSpec, Queueing, Status
from aioembed.errors import (
    InvalidConfig,
    InvalidProgram,
    InvalidUserInput,
    MissingExtra,
    ModelBusy,
    ModelClosed,
    ModelNotLoaded,
    TextTooLong,
    TokenizerError,
)
from aioembed.image import ImageEmbeddings
from aioembed.models import (
    CLIP_VIT_BASE_PATCH32_IMAGE,
    CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED,
    CLIP_VIT_BASE_PATCH32_TEXT,
    EmbeddingSpace,
)
from aioembed.text import TextEmbeddings, use_text_embeddings
from aioembed.tokenize import TruncationWarning

from ..programs import TINY_IMAGE
from .clip_bpe import END, Merge, tokenizer_json
from .conftest import Vectors

pytestmark = pytest.mark.anyio

_LONG = "a photo of a cat and a dog " * 30


@pytest.fixture(params=["hook", "padded"])
def source(request: pytest.FixtureRequest, hook_text: ModelSpec, padded_text: Path) -> Any:
    """Each kind of program: ids and mask of any length, and 77 ids."""
    return hook_text if request.param == "hook" else padded_text


async def test_vectors_are_those_of_transformers(source: Any, expected: Vectors) -> None:
    async with TextEmbeddings(source, truncate="silent") as model:
        for text, reference in expected.items():
            vector = await model.forward(text)
            assert vector.dtype == np.float32
            assert vector.shape == reference.shape == (model.embedding_dim,)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
            assert float(vector @ reference) >= 0.99999
    references = np.stack(list(expected.values()))
    assert (references @ references.T - np.eye(len(references))).max() < 0.999


async def test_the_states_of_a_life(source: Any) -> None:
    seen: list[Status] = []
    async with TextEmbeddings(source) as model:
        model.subscribe(lambda: seen.append(model.state.status))
        await model.forward("a cat")
    seen = [status for status in seen if status is not Status.IDLE]  # maybe of the queue alone
    changes = [s for i, s in enumerate(seen) if i == 0 or s is not seen[i - 1]]
    assert changes == ["loading", "ready", "generating", "ready", "closed"]


async def test_concurrent_callers_each_get_their_own_vector(source: Any, expected: Vectors) -> None:
    results: dict[str, Any] = {}

    async def embed(model: TextEmbeddings, text: str) -> None:
        results[text] = await model.embed(text)

    async with TextEmbeddings(source, truncate="silent") as model:
        async with anyio.create_task_group() as tasks:
            for text in expected:
                tasks.start_soon(embed, model, text)
        assert model.state.queue_depth == 0
    for text, vector in results.items():
        assert float(vector @ expected[text]) >= 0.99999
    assert results.keys() == expected.keys()


async def test_cancelled_callers_do_not_affect_the_others_or_the_model(
    source: Any, expected: Vectors
) -> None:
    finished: list[str] = []

    async def embed(model: TextEmbeddings, text: str) -> None:
        await model.forward(text)
        finished.append(text)

    async with TextEmbeddings(source, truncate="silent") as model:
        await model.load()
        async with anyio.create_task_group() as staying, anyio.create_task_group() as leaving:
            for text in expected:
                leaving.start_soon(embed, model, text)
                staying.start_soon(embed, model, text)
            await anyio.lowlevel.checkpoint()
            leaving.cancel_scope.cancel()
        assert set(finished) == expected.keys()
        assert model.state.queue_depth == 0
        vector = await model.forward("a photo of a cat")
        assert float(vector @ expected["a photo of a cat"]) >= 0.99999


async def test_strict_mode_refuses_a_second_call(hook_text: ModelSpec) -> None:
    refused: list[ModelBusy] = []

    async def embed(model: TextEmbeddings) -> None:
        try:
            await model.forward("a cat")
        except ModelBusy as error:
            refused.append(error)

    async with TextEmbeddings(hook_text, queueing=Queueing(max_pending=1)) as model:
        await model.load()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(embed, model)
            tasks.start_soon(embed, model)
    assert len(refused) == 1


async def test_a_closed_handle_refuses(hook_text: ModelSpec) -> None:
    async with use_text_embeddings(hook_text) as model:
        await model.load()
    with pytest.raises(ModelClosed):
        await model.forward("a cat")


async def test_nothing_loads_before_it_is_asked_to(hook_text: ModelSpec) -> None:
    async with use_text_embeddings(hook_text, prevent_load=True) as model:
        with pytest.raises(ModelNotLoaded):
            await model.forward("a cat")
        await model.load()
        await model.forward("a cat")


@pytest.mark.parametrize("text", [None, b"bytes", 7, ["a", "b"], "half\ud83d"])
async def test_a_value_that_is_not_a_text_raises_at_its_caller_alone(
    source: Any, text: Any
) -> None:
    async with TextEmbeddings(source) as model:
        with pytest.raises(InvalidUserInput):
            await model.forward(text)
        assert model.state.status is Status.READY
        assert model.state.error is None
        await model.forward("a cat")


async def test_a_long_text_is_cut_with_a_warning_at_the_callers_line(source: Any) -> None:
    async with TextEmbeddings(source) as model:
        await model.load()
        with pytest.warns(
            TruncationWarning, match="more than the 77 tokens that the model reads"
        ) as seen:
            vector = await model.forward(_LONG)
        assert [warning.filename for warning in seen] == [__file__]
    async with TextEmbeddings(source, truncate="silent") as silent:
        with warnings.catch_warnings(action="error"):
            assert np.array_equal(await silent.forward(_LONG), vector)


async def test_a_call_says_how_many_tokens_the_model_reads(source: Any) -> None:
    async with TextEmbeddings(source, truncate="silent") as model:
        for text in ("a cat", _LONG):
            counts: list[int] = []
            vector = await model.forward(text, on_tokens=counts.append)
            assert counts == [await model.count_tokens(text)]
            assert np.array_equal(vector, await model.forward(text))
        with pytest.raises(TextTooLong):
            await model.forward(_LONG, truncate="error", on_tokens=counts.append)
        assert counts == [77]


async def test_a_long_text_can_be_refused(source: Any) -> None:
    async with TextEmbeddings(source, truncate="error") as model:
        with pytest.raises(TextTooLong, match="tokens and the model reads 77: shorten"):
            await model.forward(_LONG)
        assert model.state.is_ready


async def test_what_follows_an_end_token_spelt_out_does_not_count(source: Any) -> None:
    async with TextEmbeddings(source) as model:
        vector = await model.forward(f"a cat{END} and anything else")
        assert np.allclose(vector, await model.forward("a cat"), atol=1e-6)


async def test_a_tokenizer_can_be_named(
    padded_text: Path, tokenizer_file: Path, tmp_path: Path, expected: Vectors
) -> None:
    program = shutil.copy(padded_text, tmp_path / "alone.pte")
    async with TextEmbeddings(program, tokenizer=tokenizer_file) as model:
        vector = await model.forward("a photo of a cat")
    assert float(vector @ expected["a photo of a cat"]) >= 0.99999


async def test_a_program_without_a_tokenizer_fails_to_load(
    padded_text: Path, tmp_path: Path
) -> None:
    program = shutil.copy(padded_text, tmp_path / "alone.pte")
    async with TextEmbeddings(program) as model:
        with pytest.raises(TokenizerError, match="beside the program"):
            await model.load()
        assert model.state.status is Status.FAILED
        with pytest.raises(TokenizerError):
            await model.forward("a cat")


async def test_a_load_that_failed_for_its_tokenizer_can_be_tried_again(
    padded_text: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    program = shutil.copy(padded_text, tmp_path / "text.pte")
    async with TextEmbeddings(program, prevent_load=True) as model:
        with pytest.raises(TokenizerError):
            await model.load()
        shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
        await model.load()
        await model.forward("a cat")


async def test_a_tokenizer_other_than_the_programs_own_is_refused(
    padded_text: Path, small_merges: list[Merge], tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(tokenizer_json(small_merges)), encoding="utf-8")
    async with TextEmbeddings(padded_text, tokenizer=other) as model:
        with pytest.raises(TokenizerError, match="sha256"):
            await model.load()


async def test_a_tokenizer_other_than_the_specs_own_is_refused(hook_text: ModelSpec) -> None:
    spec = hook_text.model_copy(update={"tokenizer_sha256": "0" * 64})
    async with TextEmbeddings(spec) as model:
        with pytest.raises(TokenizerError, match="sha256"):
            await model.load()


async def test_a_tokenizer_of_a_larger_vocabulary_is_refused(
    hook_text: ModelSpec, small_merges: list[Merge], tmp_path: Path
) -> None:
    larger = tmp_path / "tokenizer.json"
    larger.write_text(json.dumps(tokenizer_json([*small_merges, ("z", "q")])), encoding="utf-8")
    async with TextEmbeddings(hook_text, tokenizer=larger) as model:
        with pytest.raises(TokenizerError, match="ids up to 624"):
            await model.load()


async def test_an_image_program_is_not_a_text_model(
    image_program: Path, tokenizer_file: Path
) -> None:
    async with TextEmbeddings(image_program, tokenizer=tokenizer_file) as model:
        with pytest.raises(InvalidProgram, match="embeds images, not texts"):
            await model.load()
    with pytest.raises(InvalidConfig, match="embeds images"):
        TextEmbeddings(TINY_IMAGE)


async def test_a_program_that_takes_no_ids_is_refused(tokenizer_file: Path) -> None:
    programs = Path(__file__).parents[1] / "runtime" / "programs"
    spec = ModelSpec(
        name="linear",
        source=str(programs / "linear_xnnpack.pte"),
        modality="text",
        tokenizer_source=str(tokenizer_file),
    )
    async with TextEmbeddings(spec) as model:
        with pytest.raises(InvalidProgram, match="token ids"):
            await model.load()


async def test_without_the_tokenizers_package_the_load_names_the_extra(
    hook_text: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    async with TextEmbeddings(hook_text) as model:
        with pytest.raises(MissingExtra, match="text"):
            await model.load()


async def test_image_and_text_handles_of_one_checkpoint_share_a_space(
    padded_text: Path, image_program: Path
) -> None:
    async with TextEmbeddings(padded_text) as texts, ImageEmbeddings(image_program) as images:
        await texts.load()
        await images.load()
        assert texts.space_id == images.space_id
        assert texts.metadata is not None
        assert texts.metadata.logit_scale == 25.0


async def test_the_hooks_models_share_a_space(hook_text: ModelSpec) -> None:
    """A text program that says nothing of itself is placed by its spec, as an image one is."""

    def space(spec: ModelSpec) -> EmbeddingSpace:
        return EmbeddingSpace.of(
            weights=str(spec.checkpoint),
            preprocessing=spec.preprocessing,
            normalized=True,
            precision=spec.precision,
        )

    async with TextEmbeddings(hook_text) as model:
        await model.load()
        assert model.space == space(hook_text)
    images, quantized = CLIP_VIT_BASE_PATCH32_IMAGE, CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED
    assert space(CLIP_VIT_BASE_PATCH32_TEXT).id == space(images).id
    assert space(CLIP_VIT_BASE_PATCH32_TEXT).is_compatible(space(quantized))


async def test_a_space_follows_the_image_preprocessing_that_is_named(hook_text: ModelSpec) -> None:
    unnamed = hook_text.model_copy(update={"preprocessing": None})
    named = TextEmbeddings(unnamed, preprocessing=CLIP_PREPROCESSING)
    async with TextEmbeddings(hook_text) as one, named as other:
        await one.load()
        await other.load()
        assert one.space_id == other.space_id


async def test_options_that_cannot_work_are_refused(hook_text: ModelSpec) -> None:
    with pytest.raises(InvalidConfig, match="truncate"):
        TextEmbeddings(hook_text, truncate="perhaps")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="tokenizer="):
        TextEmbeddings("https://example.org/text.pte")
    with pytest.raises(InvalidConfig, match="lies on this machine"):
        TextEmbeddings(hook_text, tokenizer="https://example.org/tokenizer.json")


async def test_the_library_is_imported_without_the_tokenizers_package() -> None:
    code = "import sys, aioembed, aioembed.text; sys.exit('tokenizers' in sys.modules)"
    done = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
