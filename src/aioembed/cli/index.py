"""`aioembed index` and `aioembed search`: a folder of pictures that can be searched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.status import Status as Spinner
from rich.table import Table
from rich.text import Text

from aioembed import ImageEmbeddings, TextEmbeddings
from aioembed.errors import IndexFileError

from . import ExitCode
from .common import (
    DebugOption,
    MaxPixelsOption,
    ModelOption,
    OutputOption,
    SimilarityFormat,
    ThreadsOption,
    base_names,
    check_output,
    guarded,
    image_policy,
    render_table,
    to_csv,
    to_json,
    warn,
    write_result,
)
from .embed import named_images

if TYPE_CHECKING:
    from aioembed.handle import EmbeddingHandle
    from aioembed.index import Hit, SyncReport

    OnProgress = Callable[[SyncReport], None]

__all__ = ["index", "search"]

InputT = TypeVar("InputT")
_SHOWN_ERRORS = 20
_BAR_WIDTH = 20
_LINE_SECONDS = 0.2

_IndexOption = Annotated[
    Path, typer.Option("--index", "-i", metavar="FILE", help="The index's file.")
]
_DEFAULT_FILE = Path("aioembed-index.db")


class IndexFormat(StrEnum):
    """What `index` can write."""

    TABLE = "table"
    JSON = "json"
    """One object: how many pictures, and for each that failed its error."""
    JSONL = "jsonl"
    """Objects, a line each, while it goes on: how far it is; in the end those that failed."""


def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Its subfolders count too.")],
    *,
    index_file: _IndexOption = _DEFAULT_FILE,
    form: Annotated[
        IndexFormat,
        typer.Option(
            "--format", "-f", help="json and jsonl are for programs; jsonl tells how far."
        ),
    ] = IndexFormat.TABLE,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove pictures that are gone, however many.")
    ] = False,
    model: ModelOption = "efficientnet-lite0",
    max_pixels: MaxPixelsOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Index the pictures in a folder, or bring the index up to date with it.

    Only pictures that are new or changed are embedded. Interrupted, it goes on where it was. A
    picture that fails does not hold up the others; stderr says why, and the exit code is 1.

    Where many pictures are gone at once, or a folder has none any more, a drive may not be mounted:
    they stay in the index, and the exit code is 1, unless --prune is given.
    """
    with guarded(debug):
        handle = ImageEmbeddings(model, threads=threads, source_policy=image_policy(max_pixels))
        with _following(form) as on_progress:
            report, errors = anyio.run(_sync, folder, index_file, handle, prune, on_progress)
        write_result(_encode_report(report, errors, form), None)
        for path, message in list(errors.items())[:_SHOWN_ERRORS]:
            warn(f"error: {message if path in message else f'{path}: {message}'}")
        if len(errors) > _SHOWN_ERRORS:
            warn(f"and {len(errors) - _SHOWN_ERRORS} more; --format json has all of them")
        if report.missing:
            warn(
                f"error: {report.missing} indexed pictures are not in {folder} any more, as if a "
                "drive were not mounted: they stay in the index; if they are deleted, run again "
                "with --prune"
            )
        if errors or report.missing:
            raise typer.Exit(ExitCode.INPUT)


def search(
    query: Annotated[
        str,
        typer.Argument(help="A picture's path or URI, - for stdin; words with --text-model."),
    ],
    *,
    index_file: _IndexOption = _DEFAULT_FILE,
    count: Annotated[
        int, typer.Option("--count", "-k", min=1, max=4096, help="Most results.")
    ] = 10,
    form: Annotated[
        SimilarityFormat,
        typer.Option("--format", "-f", help="json and csv are for programs."),
    ] = SimilarityFormat.TABLE,
    output: OutputOption = None,
    model: ModelOption = "efficientnet-lite0",
    text_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Search by words, with the text model that goes with the index's image model.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Find the pictures of an index that are nearest to a picture, or to words."""
    with guarded(debug):
        check_output(output)
        if not index_file.is_file():
            raise IndexFileError(f"there is no index {str(index_file)!r}: make it with `index DIR`")
        if text_model is None:
            (named,) = named_images([query])
            pictures = ImageEmbeddings(model, threads=threads, source_policy=image_policy())
            hits = anyio.run(_search, index_file, pictures, named.image, count)
        else:
            words = TextEmbeddings(text_model, threads=threads)
            hits = anyio.run(_search, index_file, words, query, count)
        write_result(_encode(hits, form, plain=output is not None), output)


async def _sync(
    folder: Path, file: Path, model: ImageEmbeddings, prune: bool, on_progress: OnProgress
) -> tuple[SyncReport, dict[str, str]]:
    from aioembed.index import EmbeddingIndex  # noqa: PLC0415  # an extra

    async with EmbeddingIndex(file) as opened, model:
        report = await opened.sync(folder, model, prune=prune, on_progress=on_progress)
        return report, await opened.errors(folder)


@contextmanager
def _following(form: IndexFormat) -> Iterator[OnProgress]:
    if form is IndexFormat.JSONL:
        yield _line_writer()
        return
    with Spinner("loading the model", console=Console(stderr=True)) as spinner:
        yield lambda report: spinner.update(_sentence(report))


def _line_writer(clock: Callable[[], float] = time.monotonic) -> OnProgress:
    """Return what writes a report as a line, but few a second: a reader may draw each."""
    due = clock()

    def write(report: SyncReport) -> None:
        nonlocal due
        if clock() >= due:
            due = clock() + _LINE_SECONDS
            write_result(to_json(asdict(report)), None)

    return write


async def _search(
    file: Path, handle: EmbeddingHandle[InputT], item: InputT, count: int
) -> list[Hit]:
    from aioembed.index import EmbeddingIndex  # noqa: PLC0415  # an extra

    async with EmbeddingIndex(file) as opened, handle:
        return await opened.search_item(item, handle, count)


def _sentence(report: SyncReport) -> str:
    if report.is_scanning:
        return f"looking through the folder: {report.total} pictures"
    return escape(f"embedding: {report.done} of {report.total} done, {report.failed} failed")


def _encode_report(report: SyncReport, errors: dict[str, str], form: IndexFormat) -> bytes:
    if form is IndexFormat.JSONL:
        failed = [to_json({"path": path, "error": message}) for path, message in errors.items()]
        return b"".join([*failed, to_json(asdict(report))])
    if form is IndexFormat.JSON:
        return to_json({**_figures(report), "errors": errors})
    return render_table(_figures_table(report))


def _figures(report: SyncReport) -> dict[str, int]:
    return {name: value for name, value in asdict(report).items() if name != "is_scanning"}


def _figures_table(report: SyncReport) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for name, value in _figures(report).items():
        table.add_row(name, Text(str(value), justify="right"))
    return table


def _encode(hits: list[Hit], form: SimilarityFormat, *, plain: bool) -> bytes:
    if form is SimilarityFormat.JSON:
        return to_json([asdict(hit) for hit in hits])
    rounded = [(hit.key, round(hit.similarity, 6)) for hit in hits]
    if form is SimilarityFormat.CSV:
        return to_csv([["key", "similarity"], *map(list, rounded)])
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("similarity", "", "picture"):
        table.add_column(heading, no_wrap=True)
    names = base_names([hit.key for hit in hits])
    for hit, name in zip(hits, names, strict=True):
        bar = ProgressBar(total=1, completed=max(0.0, hit.similarity), width=_BAR_WIDTH)
        table.add_row(f"{hit.similarity:.3f}", bar, Text(name))
    return render_table(table, plain=plain) if hits else b""
