"""Zero-shot classification: which of some labels, in words, fits an image best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import anyio
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .errors import IncompatibleSpaces, InvalidConfig, InvalidUserInput, TextTooLong, shorten
from .image import ImageEmbeddings
from .images import ImageInput
from .models import EmbeddingSpace
from .text import TextEmbeddings
from .tokenize import MAX_CHARACTERS

__all__ = ["Classification", "LabelScore", "ZeroShotClassifier", "classify"]

DEFAULT_PROMPTS = ("a photo of a {}.",)

_CLIP_LOGIT_SCALE = 100.0
_PLACE = "{}"


class LabelScore(BaseModel):
    """How well one label fits an image.

    Attributes:
        label: In the caller's words.
        probability: Among the labels that were offered, 0 to 1; of this label alone where the
            model was trained with a sigmoid, as SigLIP.
        similarity: Cosine between the image and the label's prompts, -1 to 1.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    label: str
    probability: float
    similarity: float


class Classification(BaseModel):
    """How well each label fits an image.

    Attributes:
        scores: In the order of the labels. The probabilities sum to 1 unless the model was
            trained with a sigmoid: then each is its label's own, and all may be small.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    scores: tuple[LabelScore, ...]

    @property
    def best(self) -> LabelScore:
        """The label that fits best; the first of them where several do."""
        return max(self.scores, key=lambda score: score.probability)

    def ranked(self) -> list[LabelScore]:
        """Return the scores, the best first."""
        return sorted(self.scores, key=lambda score: score.probability, reverse=True)


@dataclass(frozen=True, slots=True, eq=False)
class _EmbeddedLabels:
    """The labels' embeddings `(labels, embedding_dim)`, and what the text model says of them."""

    vectors: NDArray[np.float32]
    space: EmbeddingSpace
    logit_scale: float | None
    logit_bias: float | None


class ZeroShotClassifier:
    """Classifies an image by labels, with a model's image and text towers.

    The labels' embeddings are made in the first call and kept. As in the CLIP paper (Radford et
    al., 2021, section 3.1.4), a label's embedding is the mean over its prompts' embeddings,
    brought to length 1, and the probabilities are the softmax over the cosine similarities times
    the model's `logit_scale`. A model that has a `logit_bias` was trained with a sigmoid per pair
    of image and text (Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023): each
    probability is the sigmoid of its own similarity times the scale, plus the bias.

    Args:
        labels: At least one, none twice.
        image_model: Loaded, or loading. It stays the caller's to close.
        text_model: Likewise, of the same checkpoint.
        prompts: Sentences in which `{}` stands for the label.
        logit_scale: In place of the one inside the programs; where they have none it is 100, as
            in all of OpenAI's CLIP models.

    Raises:
        InvalidUserInput: No labels, one that is no `str` or empty, or one twice.
        TextTooLong: A prompt with a label in it would be longer than any text may be.
        InvalidConfig: No prompts, one without `{}`, or a scale that is not positive.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        image_model: ImageEmbeddings,
        text_model: TextEmbeddings,
        prompts: Sequence[str] = DEFAULT_PROMPTS,
        logit_scale: float | None = None,
    ) -> None:
        self._labels = _checked_labels(labels)
        self._prompts = _checked_prompts(prompts)
        _check_lengths(self._prompts, self._labels)
        if logit_scale is not None and not 0 < logit_scale < float("inf"):
            raise InvalidConfig(f"logit_scale must be positive and finite, not {logit_scale}")
        self._image_model = image_model
        self._text_model = text_model
        self._logit_scale = logit_scale
        self._embedding = anyio.Lock()
        self._embedded: _EmbeddedLabels | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every result's scores."""
        return self._labels

    async def classify(self, image: ImageInput) -> Classification:
        """Return how well each label fits an image.

        Args:
            image: As for `ImageEmbeddings.forward`.

        Raises:
            IncompatibleSpaces: The two models' vectors cannot be compared.
            InvalidUserInput: The image or a label is at fault.
            ModelNotLoaded: No load of one of the models was started.
            AioembedError: As `ImageEmbeddings.forward` and `TextEmbeddings.forward`.
        """
        self._refuse_early()
        vector = await self._image_model.forward(image)
        labels = await self._embedded_labels()
        _check_compatible(self._image_model.space, labels.space)
        similarities = np.clip(labels.vectors @ vector, -1.0, 1.0)
        logits = self._scale(labels) * similarities.astype(np.float64)
        if labels.logit_bias is None:
            probabilities = _softmax(logits)
        else:
            probabilities = _sigmoid(logits + labels.logit_bias)
        return Classification(
            scores=tuple(
                LabelScore(label=label, probability=float(p), similarity=float(s))
                for label, p, s in zip(self._labels, probabilities, similarities, strict=True)
            )
        )

    def _refuse_early(self) -> None:
        """Compare the spaces before any work, where both models are loaded already."""
        if self._image_model.state.is_ready and self._text_model.state.is_ready:
            _check_compatible(self._image_model.space, self._text_model.space)

    async def _embedded_labels(self) -> _EmbeddedLabels:
        async with self._embedding:
            if self._embedded is None:
                vectors = [await self._embed(label) for label in self._labels]
                metadata = self._text_model.metadata
                self._embedded = _EmbeddedLabels(
                    vectors=np.stack(vectors),
                    space=self._text_model.space,
                    logit_scale=metadata.logit_scale if metadata else None,
                    logit_bias=metadata.logit_bias if metadata else None,
                )
        return self._embedded

    async def _embed(self, label: str) -> NDArray[np.float32]:
        vectors = [
            await self._text_model.forward(prompt.replace(_PLACE, label))
            for prompt in self._prompts
        ]
        mean: NDArray[np.float32] = np.mean(vectors, axis=0)
        length = np.linalg.norm(mean)
        if length == 0:
            raise InvalidUserInput(f"the prompts of {shorten(label)} cancel each other out")
        return mean / length

    def _scale(self, labels: _EmbeddedLabels) -> float:
        metadata = self._image_model.metadata
        own = metadata.logit_scale if metadata else None
        return self._logit_scale or labels.logit_scale or own or _CLIP_LOGIT_SCALE


async def classify(
    image: ImageInput,
    labels: Sequence[str],
    *,
    image_model: ImageEmbeddings,
    text_model: TextEmbeddings,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    logit_scale: float | None = None,
) -> Classification:
    """Return how well each label fits an image; for many images use `ZeroShotClassifier`.

    Args:
        image: As for `ImageEmbeddings.forward`.
        labels: At least one, none twice.
        image_model: Loaded, or loading.
        text_model: Likewise, of the same checkpoint.
        prompts: Sentences in which `{}` stands for the label; their embeddings are averaged.
        logit_scale: In place of the one inside the programs, or of CLIP's 100.

    Raises:
        IncompatibleSpaces: The two models' vectors cannot be compared.
        InvalidUserInput: The image or a label is at fault.
        InvalidConfig: A prompt or the scale is at fault.
        ModelNotLoaded: No load of one of the models was started.
        AioembedError: As `ImageEmbeddings.forward` and `TextEmbeddings.forward`.
    """
    classifier = ZeroShotClassifier(
        labels,
        image_model=image_model,
        text_model=text_model,
        prompts=prompts,
        logit_scale=logit_scale,
    )
    return await classifier.classify(image)


def _check_compatible(image: EmbeddingSpace, text: EmbeddingSpace) -> None:
    if not image.is_compatible(text):
        raise IncompatibleSpaces(
            f"the image model (space {image.id}) and the text model (space {text.id}) are not of "
            "one checkpoint with one preprocessing, so that their vectors cannot be compared"
        )


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))
    return probabilities


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not labels:
        raise InvalidUserInput(f"labels are a list of at least one text, not {shorten(labels)}")
    seen: set[str] = set()
    for label in labels:
        if not _is_text(label) or not label.strip():
            raise InvalidUserInput(f"a label is a text that is not empty, not {shorten(label)}")
        if label in seen:
            raise InvalidUserInput(f"the label {shorten(label)} is there twice")
        seen.add(label)
    return tuple(labels)


def _checked_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(prompts, str) or not prompts:
        raise InvalidConfig(f"prompts are a list of at least one text, not {shorten(prompts)}")
    for prompt in prompts:
        if not _is_text(prompt) or _PLACE not in prompt:
            raise InvalidConfig(
                f"a prompt has {{}} where the label goes; {shorten(prompt)} has not"
            )
    return tuple(prompts)


def _check_lengths(prompts: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse texts that are too long before they are built: a prompt may repeat its label."""
    longest = max(labels, key=len)
    for prompt in prompts:
        places = prompt.count(_PLACE)
        length = len(prompt) + places * (len(longest) - len(_PLACE))
        if length > MAX_CHARACTERS:
            raise TextTooLong(
                f"the label {shorten(longest)} in the prompt {shorten(prompt)} would make a text "
                f"of {length} characters and {MAX_CHARACTERS} is the most: shorten one of them"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
