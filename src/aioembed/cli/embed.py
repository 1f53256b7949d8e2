"""`aioembed embed` and `aioembed similarity`: images in, vectors or similarities out."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Protocol

import anyio
import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from aioembed import EmbeddingStream, Err, ImageEmbeddings, ImageInput, Ok, cosine_similarity
from aioembed.index.folder import Unreadable, Visit, walk

from . import ExitCode
from .common import (
    DEFAULT_MODEL,
    DebugOption,
    ImagesArgument,
    MaxPixelsOption,
    ModelOption,
    OutputOption,
    PreprocessingOption,
    ThreadsOption,
    base_names,
    check_output,
    complete_paths,
    error_record,
    guarded,
    image_policy,
    render_table,
    report_error,
    result_writer,
    shorten_middle,
    to_csv,
    to_json,
    usage_error,
    warn,
    write_result,
)
from .progress import ProgressLine

__all__ = ["NamedImage", "embed", "embed_all", "is_uri", "named_images", "similarity"]

Result = Ok[str] | Err[str]
"""An image's embedding or its error, by its name."""

STDIN = "-"
_IN_FLIGHT = 8
_URI = re.compile(r"(?i)(data|file):|[a-z][a-z0-9+.-]+://")
_LONGEST_NAME = 200
_NAME_WIDTH = 24
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image to embed and what the results call it."""

    name: str
    image: ImageInput = field(repr=False)


# --- what is to be embedded


def named_images(arguments: Sequence[str]) -> list[NamedImage]:
    """Return the images that the arguments name. Reads stdin where one of them is `-`.

    A word without a URI scheme is a path, so that a missing file is reported as one. A folder
    stands for the pictures below it, in the order of their paths.

    Raises:
        typer.Exit: A name is empty.
    """
    images = []
    for argument in arguments:
        if argument == STDIN:
            images.append(NamedImage(STDIN, sys.stdin.buffer.read()))
        elif not argument:
            raise usage_error("the name of an input is empty")
        elif is_uri(argument):
            images.append(NamedImage(_readable(argument), argument))
        elif os.path.isdir(argument):  # noqa: PTH112  # a path of NULs is an error
            found = [one for one in walk(argument) if _is_to_be_read(one)]
            paths = sorted(one.path for one in found if isinstance(one, Visit | Unreadable))
            # One without pictures is an input that fails.
            images += [NamedImage(_readable(path), Path(path)) for path in paths or [argument]]
        else:
            images.append(NamedImage(_readable(argument), Path(argument)))
    return images


def is_uri(argument: str) -> bool:
    """Return whether an argument is a URI, not a path."""
    return _URI.match(argument) is not None


def listed_names(file: Path, *, null: bool) -> list[str]:
    """Return the names in a list.

    Args:
        file: The list, `-` for stdin.
        null: NUL characters end the names, not line ends.

    Raises:
        typer.Exit: The list cannot be read.
    """
    try:
        content = sys.stdin.buffer.read() if str(file) == STDIN else file.read_bytes()
    except OSError as exc:
        raise usage_error(f"cannot read the list {str(file)!r}: {exc.strerror}") from exc
    names = content.split(b"\0") if null else content.splitlines()
    return [os.fsdecode(name) for name in names if name]


def _is_to_be_read(found: object) -> bool:
    return isinstance(found, Unreadable) or (isinstance(found, Visit) and found.is_picture)


def _readable(argument: str) -> str:
    readable = os.fsencode(argument).decode("utf-8", "replace")
    if len(readable) <= _LONGEST_NAME:
        return readable
    half = _LONGEST_NAME // 2
    return f"{readable[:half]}…{readable[-half:]}"


# --- embedding


def _results(model: ImageEmbeddings, images: Sequence[NamedImage]) -> EmbeddingStream[str]:
    """Embed images with a loaded model, a few at the same time; the results keep their order."""
    items = ((named.name, named.image) for named in images)
    return model.embed_stream(items, keyed=True, concurrency=_IN_FLIGHT)


async def embed_all(
    model: ImageEmbeddings,
    images: Sequence[NamedImage],
    *,
    on_done: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Embed images with a loaded model; return their results in their order.

    Args:
        model: A loaded handle.
        images: What to embed.
        on_done: Called after each image, embedded or not.
    """
    results = []
    async with _results(model, images) as stream:
        async for result in stream:
            results.append(result)
            on_done()
    return results


# --- writing vectors


class EmbeddingFormat(StrEnum):
    """What `embed` can write."""

    JSON = "json"
    """One object: model, space, dimension, and for each input its embedding or its error."""
    NPY = "npy"
    """A float32 array `(inputs, dim)`; an input that failed is a row of NaN."""
    CSV = "csv"
    """A header, then a line for each input that was embedded."""


class SimilarityFormat(StrEnum):
    """What `similarity` can write."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class _Encoder(Protocol):
    """Encodes vectors as they come; every float32 reads back as the same float32."""

    def begin(self, model: ImageEmbeddings, count: int) -> bytes: ...
    def add(self, result: Result) -> bytes: ...
    def end(self) -> bytes: ...


class _Json:
    def begin(self, model: ImageEmbeddings, count: int) -> bytes:
        del count
        self._separator = ""
        dim = model.embedding_dim
        head = json.dumps({"model": model.spec.name, "space_id": model.space_id, "dim": dim})
        return f'{head[:-1]}, "results": ['.encode()

    def add(self, result: Result) -> bytes:
        record: dict[str, object] = {"input": result.key}
        if isinstance(result, Ok):
            record["embedding"] = _shortest(result.embedding)
        else:
            record["error"] = error_record(result.error)
        separator, self._separator = self._separator, ", "
        return f"{separator}{json.dumps(record, ensure_ascii=False)}".encode()

    def end(self) -> bytes:
        return b"]}\n"


class _Npy:
    def begin(self, model: ImageEmbeddings, count: int) -> bytes:
        self._missing = np.full(model.embedding_dim, np.nan, dtype="<f4").tobytes()
        header = io.BytesIO()
        shape = (count, model.embedding_dim)
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        return header.getvalue()

    def add(self, result: Result) -> bytes:
        if isinstance(result, Err):
            return self._missing
        return result.embedding.astype("<f4", copy=False).tobytes()

    def end(self) -> bytes:
        return b""


class _Csv:
    def begin(self, model: ImageEmbeddings, count: int) -> bytes:
        del count
        return to_csv([["input", *(f"e{index}" for index in range(model.embedding_dim))]])

    def add(self, result: Result) -> bytes:
        if isinstance(result, Err):
            return b""
        return to_csv([[result.key, *_shortest(result.embedding)]])

    def end(self) -> bytes:
        return b""


_ENCODERS: Mapping[EmbeddingFormat, Callable[[], _Encoder]] = MappingProxyType(
    {EmbeddingFormat.JSON: _Json, EmbeddingFormat.NPY: _Npy, EmbeddingFormat.CSV: _Csv}
)


def _shortest(vector: NDArray[np.float32]) -> list[float]:
    """Doubles that print with no more digits than the float32 values need."""
    return [float(str(value)) for value in vector]


# --- the commands


def embed(
    images: Annotated[
        list[str] | None,
        ImagesArgument,
    ] = None,
    *,
    files_from: Annotated[
        Path | None,
        typer.Option(
            "--files-from",
            metavar="FILE",
            help="Read more names from a list, one a line; - for stdin.",
            autocompletion=complete_paths,
            show_default=False,
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="NULs end the names of the list, not line ends.")
    ] = False,
    form: Annotated[
        EmbeddingFormat,
        typer.Option("--format", "-f", help="npy is one float32 array (images, dim)."),
    ] = EmbeddingFormat.JSON,
    output: OutputOption = None,
    model: ModelOption = DEFAULT_MODEL,
    preprocessing: PreprocessingOption = None,
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
        names = [*(images or ())]
        if files_from is not None:
            if STDIN in names and str(files_from) == STDIN:
                raise usage_error("stdin can be a list of names or an image, not both")
            names += listed_names(files_from, null=null)
        elif not names:
            raise usage_error("name the images to embed, or give --files-from")
        wanted = named_images(names)
        check_output(
            output,
            binary=form is EmbeddingFormat.NPY,
            inputs=(named.image for named in wanted),
        )
        handle = ImageEmbeddings(
            model,
            preprocessing=preprocessing,
            threads=threads,
            source_policy=image_policy(max_pixels),
        )
        encoder = _ENCODERS[form]()
        failed = anyio.run(partial(_embed, handle, wanted, encoder, output, debug=debug))
        if len(wanted) > 1 and failed:
            warn(f"{failed} of {len(wanted)} images failed")
        if failed:
            raise typer.Exit(ExitCode.INPUT)


async def _embed(
    model: ImageEmbeddings,
    images: Sequence[NamedImage],
    encoder: _Encoder,
    output: Path | None,
    *,
    debug: bool,
) -> int:
    """Write vectors as they come, and return how many images failed."""
    failures: list[Err[str]] = []
    with ProgressLine(model, len(images)) as progress:
        async with model:
            await model.load()
            with result_writer(output) as write:
                head = encoder.begin(model, len(images))
                async with _results(model, images) as stream:
                    async for result in stream:
                        write(head + encoder.add(result))
                        head = b""
                        progress.advance()
                        if isinstance(result, Err):
                            failures.append(result)
                write(head + encoder.end())
    for failure in failures:
        report_error(failure.error, name=failure.key, debug=debug)
    return len(failures)


def similarity(
    images: Annotated[list[str], ImagesArgument],
    *,
    form: Annotated[
        SimilarityFormat,
        typer.Option("--format", "-f", help="json and csv are for programs."),
    ] = SimilarityFormat.TABLE,
    output: OutputOption = None,
    model: ModelOption = DEFAULT_MODEL,
    preprocessing: PreprocessingOption = None,
    max_pixels: MaxPixelsOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare images with each other.

    Cosine similarity is 1 for the same picture and about 0 for unrelated ones. An image that fails
    is left out of the table; stderr says why, and the exit code is 1.
    """
    with guarded(debug):
        wanted = named_images(images)
        if len(wanted) < 2:  # noqa: PLR2004  # a similarity is of two
            raise usage_error("similarity needs at least two images")
        check_output(output, inputs=(named.image for named in wanted))
        handle = ImageEmbeddings(
            model,
            preprocessing=preprocessing,
            threads=threads,
            source_policy=image_policy(max_pixels),
        )
        space_id, results = anyio.run(_compare, handle, wanted)
        encoded = _encode(handle.spec.name, space_id, results, form, plain=output is not None)
        write_result(encoded, output)
        failed = [one for one in results if isinstance(one, Err)]
        for one in failed:
            report_error(one.error, name=one.key, debug=debug)
        if failed:
            warn(f"{len(failed)} of {len(wanted)} images failed")
            raise typer.Exit(ExitCode.INPUT)


async def _compare(
    model: ImageEmbeddings, images: Sequence[NamedImage]
) -> tuple[str, list[Result]]:
    with ProgressLine(model, len(images)) as progress:
        async with model:
            await model.load()
            return model.space_id, await embed_all(model, images, on_done=progress.advance)


def _encode(
    model: str, space_id: str, results: list[Result], form: SimilarityFormat, *, plain: bool
) -> bytes:
    embedded = [one for one in results if isinstance(one, Ok)]
    names = [one.key for one in embedded]
    vectors = (
        np.stack([one.embedding for one in embedded]) if embedded else np.zeros((0, 1), np.float32)
    )
    matrix = np.asarray(cosine_similarity(vectors, vectors))
    if form is SimilarityFormat.TABLE:
        table = similarity_table(base_names(names), matrix)
        return render_table(table, plain=plain) if len(names) > 1 else b""
    rounded = [[round(float(value), _DECIMALS) for value in row] for row in matrix]
    if form is SimilarityFormat.CSV:
        rows = [[name, *row] for name, row in zip(names, rounded, strict=True)]
        return to_csv([["input", *names], *rows])
    failed = [
        {"input": one.key, "error": error_record(one.error)}
        for one in results
        if isinstance(one, Err)
    ]
    return to_json(
        {
            "model": model,
            "space_id": space_id,
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
