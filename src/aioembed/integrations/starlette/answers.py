"""The answers that take computing: embeddings, similarities, classifications."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import anyio
import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from aioembed.errors import AioembedError, IncompatibleSpaces, InvalidUserInput
from aioembed.image import ImageEmbeddings
from aioembed.similarity import cosine_similarity
from aioembed.zero_shot import DEFAULT_PROMPTS, ZeroShotClassifier

from .models import Handle, Served, ServedModels, check_ready
from .problems import Problem, code_of, status_of
from .schemas import (
    ClassifyRequest,
    ClassifyResponse,
    EmbeddingsRequest,
    EncodingFormat,
    LabelScore,
    SimilarityRequest,
    SimilarityResponse,
)
from .work import Work

__all__ = ["Answers"]

_INLINE_VECTORS = 8

Matrix = NDArray[np.float32]


class Answers:
    """Computes answers.

    Args:
        models: By name.
        work: Embeds.
    """

    def __init__(self, models: ServedModels, work: Work) -> None:
        self._models = models
        self._work = work

    async def embed(self, asked: EmbeddingsRequest) -> bytes:
        """Return an `EmbeddingsResponse` in JSON.

        Raises:
            Problem: The request is at fault, or the model is not ready.
            AioembedError: The model could not do it.
        """
        inputs = asked.input if isinstance(asked.input, list) else [asked.input]
        self._work.check_count(len(inputs), param="input")
        served = self._models.find(asked.model, asked.modality)
        check_ready(served)
        _check_dimensions(asked.dimensions, served)
        if isinstance(served.handle, ImageEmbeddings):
            vectors, tokens = await self._work.images(served.handle, inputs, param="input"), 0
        else:
            texts = _texts(inputs)
            vectors = await self._work.texts(served.handle, texts, param="input")
            tokens = await self._work.count_tokens(served.handle, texts)

        def encode() -> bytes:
            return _encoded(vectors, served.name, tokens, asked.encoding_format)

        return (
            encode() if len(inputs) <= _INLINE_VECTORS else await anyio.to_thread.run_sync(encode)
        )

    async def compare(self, asked: SimilarityRequest) -> SimilarityResponse:
        """Return the cosines; raises as `embed`."""
        self._work.check_count(len(asked.images) + len(asked.texts), param="images")
        vectors: list[Matrix] = []
        models: list[tuple[str, Handle]] = []
        if asked.images:
            models.append(image := self._models.image(asked.model))
        if asked.texts:
            models.append(text := self._models.text(asked.text_model))
        if not models:
            raise Problem(400, "give images, texts or both", code="invalid_request", param="images")
        _check_spaces([handle for _, handle in models])
        if asked.images:
            vectors.append(await self._work.images(image[1], asked.images, param="images"))
        if asked.texts:
            vectors.append(await self._work.texts(text[1], asked.texts, param="texts"))
        return SimilarityResponse(
            model=models[0][0],
            text_model=models[-1][0] if asked.texts else None,
            similarities=np.asarray(cosine_similarity(vectors[0], vectors[-1])).tolist(),
        )

    async def classify(self, asked: ClassifyRequest) -> ClassifyResponse:
        """Return the labels' probabilities; raises as `embed`."""
        prompts = asked.prompts or DEFAULT_PROMPTS
        self._work.check_count(len(asked.labels) * len(prompts), param="labels")
        image_name, image_model = self._models.image(asked.model)
        text_name, text_model = self._models.text(asked.text_model)
        classifier = ZeroShotClassifier(
            asked.labels, image_model=image_model, text_model=text_model, prompts=prompts
        )
        try:
            image = await self._work.admit(asked.image)
        except InvalidUserInput as exc:
            raise _in_field(exc, "image") from exc
        found = await classifier.classify(image)
        scores = [LabelScore.model_validate(score.model_dump()) for score in found.ranked()]
        return ClassifyResponse(model=image_name, text_model=text_name, scores=scores)


def _encoded(vectors: Matrix, model: str, tokens: int, form: EncodingFormat) -> bytes:
    """An `EmbeddingsResponse`, without a model object for each of its numbers."""
    if form == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        rows = vectors.tolist()
    data = [
        {"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": data, "model": model, "usage": usage})


def _check_dimensions(wanted: int | None, served: Served) -> None:
    dim = served.handle.embedding_dim
    if wanted is not None and wanted != dim:
        raise Problem(
            400,
            f"{served.name} gives vectors of {dim} values and cannot give {wanted}: leave "
            "dimensions out",
            code="dimensions_not_supported",
            param="dimensions",
        )


def _check_spaces(handles: Sequence[Handle]) -> None:
    spaces = [handle.space for handle in handles]
    if not spaces[0].is_compatible(spaces[-1]):
        raise IncompatibleSpaces(
            "the image model and the text model are not of one checkpoint, so that their vectors "
            "cannot be compared: name others with model and text_model"
        )


def _texts(inputs: Sequence[str | bytes]) -> list[str]:
    for index, one in enumerate(inputs):
        if isinstance(one, bytes):
            message = f"input[{index}] is a file, and the model embeds texts: send it as a field"
            raise Problem(400, message, code="modality_not_supported", param=f"input[{index}]")
    return [one for one in inputs if isinstance(one, str)]


def _in_field(error: AioembedError, param: str) -> Problem:
    return Problem(status_of(error), f"{param}: {error}", code=code_of(error), param=param)
