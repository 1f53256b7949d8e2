"""Zero-shot classification over an image and a text tower."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from aioembed import ModelSpec
from aioembed.errors import (
    ImageDecodeError,
    IncompatibleSpaces,
    InvalidConfig,
    InvalidUserInput,
    ModelNotLoaded,
    TextTooLong,
)
from aioembed.image import ImageEmbeddings
from aioembed.text import TextEmbeddings
from aioembed.zero_shot import ZeroShotClassifier, classify

from ..programs import TINY_IMAGE

pytestmark = pytest.mark.anyio

_LABELS = ["cat", "dog", "rocket", "cup of coffee"]
_PROMPTS = ("a photo of a {}.", "a picture of the {}", "{}")

Models = dict[str, Any]


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
async def models(padded_text: Path, image_program: Path) -> AsyncIterator[Models]:
    """Both towers, loaded, as keyword arguments."""
    image, text = ImageEmbeddings(image_program), TextEmbeddings(padded_text)
    await image.load()
    await text.load()
    yield {"image_model": image, "text_model": text}
    await image.aclose()
    await text.aclose()


async def test_probabilities_are_the_softmax_of_the_scaled_cosines(
    models: Models, picture: NDArray[np.uint8]
) -> None:
    result = await classify(picture, _LABELS, **models)
    image = (await models["image_model"].forward(picture)).astype(np.float64)
    texts = [await models["text_model"].forward(f"a photo of a {label}.") for label in _LABELS]
    cosines = np.stack(texts) @ image
    expected = np.exp(25.0 * cosines) / np.exp(25.0 * cosines).sum()
    assert [score.label for score in result.scores] == _LABELS
    assert [score.probability for score in result.scores] == pytest.approx(expected, abs=1e-5)
    assert [score.similarity for score in result.scores] == pytest.approx(cosines, abs=1e-6)
    assert sum(score.probability for score in result.scores) == pytest.approx(1, abs=1e-12)
    assert result.best.label == _LABELS[int(np.argmax(cosines))]
    ranked = [score.probability for score in result.ranked()]
    assert ranked == sorted(ranked, reverse=True)


async def test_a_model_with_a_bias_gives_each_label_its_own_sigmoid(
    models: Models, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    softmax = await classify(picture, _LABELS, **models)
    trained = models["text_model"].metadata.model_copy(update={"logit_bias": -12.5})
    monkeypatch.setattr(TextEmbeddings, "metadata", property(lambda _model: trained))

    result = await classify(picture, _LABELS, **models)

    cosines = np.array([score.similarity for score in result.scores])
    expected = 1 / (1 + np.exp(12.5 - 25.0 * cosines))
    assert [score.probability for score in result.scores] == pytest.approx(expected, abs=1e-9)
    assert sum(score.probability for score in result.scores) < 0.9
    assert result.best.label == softmax.best.label


async def test_several_prompts_count_by_their_normalised_mean(
    models: Models, picture: NDArray[np.uint8]
) -> None:
    result = await classify(picture, _LABELS, prompts=_PROMPTS, **models)
    image = await models["image_model"].forward(picture)
    for score in result.scores:
        texts = [
            await models["text_model"].forward(prompt.format(score.label)) for prompt in _PROMPTS
        ]
        mean = np.mean(texts, axis=0)
        cosine = float(mean @ image / np.linalg.norm(mean))
        assert score.similarity == pytest.approx(cosine, abs=1e-6)


async def test_a_given_scale_takes_precedence_over_the_programs(
    models: Models, picture: NDArray[np.uint8]
) -> None:
    flat = await classify(picture, _LABELS, logit_scale=1e-6, **models)
    assert [score.probability for score in flat.scores] == pytest.approx([0.25] * 4, abs=1e-5)
    sharp = await classify(picture, _LABELS, logit_scale=1e6, **models)
    assert sharp.best.probability == pytest.approx(1)
    assert sum(score.probability for score in sharp.scores) == pytest.approx(1, abs=1e-12)


async def test_one_label_is_certain(models: Models, picture: NDArray[np.uint8]) -> None:
    result = await classify(picture, ["cat"], **models)
    assert result.best.probability == 1.0


async def test_a_classifier_embeds_its_labels_once_for_many_images(
    models: Models, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    forward = TextEmbeddings.forward

    async def counted(self: TextEmbeddings, text: str) -> NDArray[np.float32]:
        texts.append(text)
        return await forward(self, text)

    monkeypatch.setattr(TextEmbeddings, "forward", counted)
    classifier = ZeroShotClassifier(_LABELS, prompts=_PROMPTS, **models)
    results: list[Any] = []

    async def one() -> None:
        results.append(await classifier.classify(picture))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(one)
    assert len(texts) == len(set(texts)) == len(_LABELS) * len(_PROMPTS)
    assert classifier.labels == tuple(_LABELS)
    assert all(result == results[0] for result in results)


async def test_a_classifier_whose_first_call_failed_works_in_the_next(
    padded_text: Path, image_program: Path, picture: NDArray[np.uint8]
) -> None:
    text = TextEmbeddings(padded_text)
    async with ImageEmbeddings(image_program) as image:
        classifier = ZeroShotClassifier(["cat", "dog"], image_model=image, text_model=text)
        with pytest.raises(ModelNotLoaded):
            await classifier.classify(picture)
        await text.load()
        assert len((await classifier.classify(picture)).scores) == 2
    await text.aclose()


async def test_models_that_still_load_are_waited_for(
    padded_text: Path, image_program: Path, picture: NDArray[np.uint8]
) -> None:
    async with ImageEmbeddings(image_program) as image, TextEmbeddings(padded_text) as text:
        result = await classify(picture, _LABELS, image_model=image, text_model=text)
    assert len(result.scores) == 4


@pytest.mark.parametrize("loaded", [True, False])
async def test_models_of_two_spaces_are_refused(
    padded_text: Path, picture: NDArray[np.uint8], loaded: bool
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as image, TextEmbeddings(padded_text) as text:
        if loaded:
            await image.load()
            await text.load()
        with pytest.raises(IncompatibleSpaces, match="one checkpoint"):
            await classify(picture, _LABELS, image_model=image, text_model=text)


async def test_one_checkpoint_under_two_preprocessings_is_refused(
    hook_text: ModelSpec, image_program: Path, picture: NDArray[np.uint8]
) -> None:
    async with ImageEmbeddings(image_program) as image, TextEmbeddings(hook_text) as text:
        with pytest.raises(IncompatibleSpaces):
            await classify(picture, _LABELS, image_model=image, text_model=text)


@pytest.mark.parametrize(
    "labels", [[], "cat", ["cat", 3], ["cat", " "], ["cat", "dog", "cat"], [None]]
)
async def test_labels_that_cannot_be_told_apart_are_refused(models: Models, labels: Any) -> None:
    with pytest.raises(InvalidUserInput, match="label"):
        ZeroShotClassifier(labels, **models)


@pytest.mark.parametrize("prompts", [[], "a photo of a {}.", ["a photo"], [3]])
async def test_prompts_without_a_place_for_the_label_are_refused(
    models: Models, prompts: Any
) -> None:
    with pytest.raises(InvalidConfig, match="prompt"):
        ZeroShotClassifier(_LABELS, prompts=prompts, **models)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
async def test_a_scale_that_is_not_positive_is_refused(models: Models, scale: float) -> None:
    with pytest.raises(InvalidConfig, match="logit_scale"):
        ZeroShotClassifier(_LABELS, logit_scale=scale, **models)


async def test_braces_in_labels_and_prompts_stay_as_they_are(
    models: Models, picture: NDArray[np.uint8]
) -> None:
    result = await classify(picture, ["{0}", "cat {x}"], prompts=["{} {y}"], **models)
    text = await models["text_model"].forward("{0} {y}")
    image = await models["image_model"].forward(picture)
    assert result.scores[0].similarity == pytest.approx(float(text @ image), abs=1e-6)


async def test_a_bad_image_or_label_raises_its_own_error(
    models: Models, padded_text: Path, picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(ImageDecodeError):
        await classify(b"\x89PNG\r\n\x1a\n broken", _LABELS, **models)
    async with TextEmbeddings(padded_text, truncate="error") as strict:
        with pytest.raises(TextTooLong):
            await classify(
                picture, ["cat " * 100], image_model=models["image_model"], text_model=strict
            )


@pytest.mark.parametrize(
    ("label", "prompt"),
    [("x" * 50_000, "{}" * 50_000), ("x" * 100_001, "{}"), ("x", "{}" + "y" * 100_000)],
)
async def test_a_text_that_would_be_too_long_is_never_built(
    models: Models, picture: NDArray[np.uint8], label: str, prompt: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TextTooLong, match="100000 is the most"):
            await classify(picture, ["cat", label], prompts=["a {}", prompt], **models)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_a_result_is_frozen_and_goes_through_json(
    models: Models, picture: NDArray[np.uint8]
) -> None:
    result = await classify(picture, _LABELS, **models)
    assert type(result).model_validate_json(result.model_dump_json()) == result
    with pytest.raises(ValidationError, match="frozen"):
        result.scores = ()
