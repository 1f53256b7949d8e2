"""Several images at the same time, their results in the order given."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import numpy as np
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, ImageInput
from aioembed.errors import AioembedError

from .progress import ProgressLine

__all__ = ["STDIN", "Batch", "NamedImage", "Outcome", "embed_all", "embed_with", "named_images"]

STDIN = "-"
_IN_FLIGHT = 8
_URI = re.compile(r"(?i)(data|file):|[a-z][a-z0-9+.-]+://")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image to embed and what the results call it."""

    name: str
    image: ImageInput


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image: an embedding or an error.

    Attributes:
        name: What the results call the image.
        embedding: float32 `(dim,)`, None where it failed.
        error: Why it failed, None where it did not.
    """

    name: str
    embedding: NDArray[np.float32] | None = None
    error: AioembedError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The outcomes of one run, in the order of the inputs.

    Attributes:
        model: Name of the model.
        space_id: Of the space the vectors live in.
        dim: Values per vector.
        outcomes: One per input.
    """

    model: str
    space_id: str
    dim: int
    outcomes: tuple[Outcome, ...] = field(repr=False)  # asyncio puts a task's result into a text

    @property
    def embedded(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Names and vectors of the images that were embedded."""
        return [(one.name, one.embedding) for one in self.outcomes if one.embedding is not None]

    @property
    def failed(self) -> list[tuple[str, AioembedError]]:
        """Names and errors of the images that were not."""
        return [(one.name, one.error) for one in self.outcomes if one.error is not None]


def named_images(arguments: Sequence[str]) -> list[NamedImage]:
    """Return what the arguments name. Reads stdin where one of them is `-`.

    A word without a URI scheme is always a path here, so that a missing file is reported as one.
    """
    return [NamedImage(_name(argument), _image(argument)) for argument in arguments]


async def embed_with(model: ImageEmbeddings, images: Sequence[NamedImage]) -> Batch:
    """Load a model, embed images with it, and show on stderr what it is doing.

    Args:
        model: A handle that nobody has entered yet; it is closed at the end.
        images: What to embed.

    Raises:
        AioembedError: The model could not be loaded. What fails on one image is in its outcome.
    """
    with ProgressLine(model, len(images)) as progress:
        async with model:
            await model.load()
            outcomes = await embed_all(model, images, on_done=progress.advance)
            return Batch(model.spec.name, model.space_id, model.embedding_dim, tuple(outcomes))


async def embed_all(
    model: ImageEmbeddings,
    images: Sequence[NamedImage],
    *,
    on_done: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Embed images with a loaded model, a few at the same time.

    Args:
        model: A loaded handle.
        images: What to embed.
        on_done: Called after each image, whatever became of it.

    Returns:
        One outcome per image, in the order of the images.
    """
    outcomes: dict[int, Outcome] = {}

    async def work(waiting: Iterator[tuple[int, NamedImage]]) -> None:
        for index, named in waiting:
            outcomes[index] = await _embed_one(model, named)
            on_done()

    waiting = iter(enumerate(images))
    async with anyio.create_task_group() as tasks:
        for _ in range(min(_IN_FLIGHT, len(images))):
            tasks.start_soon(work, waiting)
    return [outcomes[index] for index in range(len(images))]


async def _embed_one(model: ImageEmbeddings, named: NamedImage) -> Outcome:
    try:
        return Outcome(named.name, embedding=await model.forward(named.image))
    except AioembedError as error:
        return Outcome(named.name, error=error)


def _name(argument: str) -> str:
    readable = os.fsencode(argument).decode("utf-8", "replace")
    if len(readable) <= _LONGEST_NAME:
        return readable
    half = _LONGEST_NAME // 2
    return f"{readable[:half]}…{readable[-half:]}"


def _image(argument: str) -> ImageInput:
    if argument == STDIN:
        return sys.stdin.buffer.read()
    return argument if _URI.match(argument) else Path(argument)
