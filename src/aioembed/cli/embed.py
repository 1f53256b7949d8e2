"""`aioembed embed` and `aioembed similarity`: images in, vectors or similarities out."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import anyio
import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from aioembed import ImageEmbeddings, ImageInput, cosine_similarity
from aioembed.errors import AioembedError

from . import ExitCode
from .common import (
    DebugOption,
    ImagesArgument,
    MaxPixelsOption,
    ModelOption,
    OutputOption,
    SimilarityFormat,
    ThreadsOption,
    base_names,
    check_output,
    error_record,
    guarded,
    image_policy,
    render_table,
    report_error,
    shorten_middle,
    to_csv,
    to_json,
    usage_error,
    warn,
    write_result,
)
from .progress import ProgressLine

__all__ = ["Batch", "NamedImage", "Outcome", "embed", "embed_all", "named_images", "similarity"]

STDIN = "-"
_IN_FLIGHT = 8
_URI = re.compile(r"(?i)(data|file):|[a-z][a-z0-9+.-]+://")
_LONGEST_NAME = 200
_NAME_WIDTH = 24


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


class EmbeddingFormat(StrEnum):
    """What `embed` can write."""

    JSON = "json"
    """One object: model, space, dimension, and for each input its embedding or its error."""
    NPY = "npy"
    """A float32 array `(inputs, dim)`; an input that failed is a row of NaN."""
    CSV = "csv"
    """A header, then a line for each input that was embedded."""


def encode_batch(batch: Batch, form: EmbeddingFormat) -> bytes:
    """Return a batch in one of the formats; every float32 reads back as the same float32."""
    return _ENCODERS[form](batch)


def _json(batch: Batch) -> bytes:
    results = [
        {"input": one.name, "error": error_record(one.error)}
        if one.error is not None
        else {"input": one.name, "embedding": _shortest(one.embedding)}
        for one in batch.outcomes
    ]
    head = {"model": batch.model, "space_id": batch.space_id, "dim": batch.dim}
    return to_json({**head, "results": results})


def _npy(batch: Batch) -> bytes:
    missing = np.full(batch.dim, np.nan, dtype=np.float32)
    rows = [missing if one.embedding is None else one.embedding for one in batch.outcomes]
    file = io.BytesIO()
    np.save(file, np.stack(rows))
    return file.getvalue()


def _csv(batch: Batch) -> bytes:
    header = ["input", *(f"e{index}" for index in range(batch.dim))]
    return to_csv([header, *([name, *_shortest(vector)] for name, vector in batch.embedded)])


def _shortest(vector: NDArray[np.float32] | None) -> list[float]:
    """Doubles that print with no more digits than the float32 values need."""
    return [] if vector is None else [float(str(value)) for value in vector]


_ENCODERS: Mapping[EmbeddingFormat, Callable[[Batch], bytes]] = MappingProxyType(
    {EmbeddingFormat.JSON: _json, EmbeddingFormat.NPY: _npy, EmbeddingFormat.CSV: _csv}
)


def embed(
    images: ImagesArgument,
    *,
    form: Annotated[
        EmbeddingFormat,
        typer.Option("--format", "-f", help="npy is one float32 array (images, dim)."),
    ] = EmbeddingFormat.JSON,
    output: OutputOption = None,
    model: ModelOption = "efficientnet-lite0",
    max_pixels: MaxPixelsOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Embed images and write their vectors.

    They have length 1 and are in the order of the arguments. An image that fails does not lose the
    others: json gives its error, npy a row of NaN, csv no line; stderr says why, and the exit code
    is 1.
    """
    with guarded(debug):
        check_output(output, binary=form is EmbeddingFormat.NPY)
        handle = ImageEmbeddings(model, threads=threads, source_policy=image_policy(max_pixels))
        batch = anyio.run(partial(embed_with, handle, named_images(images)))
        write_result(encode_batch(batch, form), output)
        finish(batch, debug=debug)


def finish(batch: Batch, *, debug: bool) -> None:
    """Say which images failed.

    Raises:
        typer.Exit: Any did.
    """
    for name, error in batch.failed:
        report_error(error, name=name, debug=debug)
    if len(batch.outcomes) > 1 and batch.failed:
        warn(f"{len(batch.failed)} of {len(batch.outcomes)} images failed")
    if batch.failed:
        raise typer.Exit(ExitCode.INPUT)


_DECIMALS = 6


def similarity(
    images: ImagesArgument,
    *,
    form: Annotated[
        SimilarityFormat,
        typer.Option("--format", "-f", help="json and csv are for programs."),
    ] = SimilarityFormat.TABLE,
    output: OutputOption = None,
    model: ModelOption = "efficientnet-lite0",
    max_pixels: MaxPixelsOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare images with each other.

    Cosine similarity is 1 for the same picture and about 0 for unrelated ones. An image that fails
    is left out of the table; stderr says why, and the exit code is 1.
    """
    with guarded(debug):
        if len(images) < 2:  # noqa: PLR2004  # a similarity is of two
            raise usage_error("similarity needs at least two images")
        check_output(output)
        handle = ImageEmbeddings(model, threads=threads, source_policy=image_policy(max_pixels))
        batch = anyio.run(partial(embed_with, handle, named_images(images)))
        write_result(_encode(batch, form, plain=output is not None), output)
        finish(batch, debug=debug)


def _matrix(batch: Batch) -> NDArray[np.floating]:
    vectors = [vector for _, vector in batch.embedded]
    if not vectors:
        return np.zeros((0, 0))
    stacked = np.stack(vectors)
    return np.asarray(cosine_similarity(stacked, stacked))


def _encode(batch: Batch, form: SimilarityFormat, *, plain: bool) -> bytes:
    names = [name for name, _ in batch.embedded]
    matrix = _matrix(batch)
    if form is SimilarityFormat.TABLE:
        table = similarity_table(base_names(names), matrix)
        return render_table(table, plain=plain) if len(names) > 1 else b""
    rounded = [[round(float(value), _DECIMALS) for value in row] for row in matrix]
    if form is SimilarityFormat.CSV:
        rows = [[name, *row] for name, row in zip(names, rounded, strict=True)]
        return to_csv([["input", *names], *rows])
    failed = [{"input": name, "error": error_record(error)} for name, error in batch.failed]
    return to_json(
        {
            "model": batch.model,
            "space_id": batch.space_id,
            "inputs": names,
            "similarities": rounded,
            "failed": failed,
        }
    )


def similarity_table(names: Sequence[str], similarities: NDArray[np.floating]) -> Table:
    """Return a table of similarities, the nearest other image of each row in bold.

    Args:
        names: Of the images, one per row.
        similarities: `(n, n)`, from -1 to 1.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("cosine similarity", no_wrap=True)
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True, min_width=5)
    others = np.where(np.eye(len(names), dtype=bool), -np.inf, similarities)
    for index, (name, row) in enumerate(zip(names, similarities, strict=True)):
        nearest = int(np.argmax(others[index])) if len(names) > 1 else -1
        cells = [
            Text(f"{value:.2f}", style="bold green" if column == nearest else "")
            for column, value in enumerate(row)
        ]
        table.add_row(str(index + 1), Text(shorten_middle(name, _NAME_WIDTH)), *cells)
    return table
