"""`aioembed index`, `search` and `duplicates`: folders of pictures that can be searched."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import typer
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aioembed import ImageEmbeddings, TextEmbeddings
from aioembed.errors import FileReadFailed, IndexFileError, InvalidUserInput
from aioembed.handle import EmbeddingHandle
from aioembed.index import EmbeddingIndex, Hit, IndexInfo, SyncReport, default_index_path
from aioembed.index.folder import is_picture_name
from aioembed.models import MODELS, ModelSpec

from . import ExitCode
from .common import (
    DEFAULT_MODEL,
    DebugOption,
    IndexModelOption,
    MaxPixelsOption,
    OutputOption,
    PreprocessingOption,
    TextModelOption,
    ThreadsOption,
    check_output,
    complete_paths,
    guarded,
    image_policy,
    render_table,
    to_csv,
    to_json,
    usage_error,
    warn,
    write_result,
)
from .embed import STDIN, is_uri, named_images
from .progress import Pace, ProgressLine

__all__ = ["duplicates", "index", "search"]

InputT = TypeVar("InputT")
OnProgress = Callable[[SyncReport], None]
_SHOWN_ERRORS = 20
_BAR_WIDTH = 20
_NARROW = 60
_LINE_SECONDS = 0.2

_IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        "-i",
        metavar="FILE",
        help="The index's file; by default your own, in the platform's data folder.",
        autocompletion=complete_paths,
        show_default=False,
    ),
]


class IndexFormat(StrEnum):
    """What `index` can write."""

    TABLE = "table"
    JSON = "json"
    """One object: how many pictures, and for each that failed its error."""
    JSONL = "jsonl"
    """Objects, a line each, while it goes on: how far it is; in the end those that failed."""


class HitFormat(StrEnum):
    """What `search` can write."""

    TABLE = "table"
    PATHS = "paths"
    """The paths alone, a line each."""
    JSON = "json"
    CSV = "csv"


class GroupFormat(StrEnum):
    """What `duplicates` can write."""

    TABLE = "table"
    PATHS = "paths"
    """The paths alone, a line each, with an empty line between groups."""
    JSON = "json"


_NullOption = Annotated[
    bool, typer.Option("--null", "-0", help="With --format paths: end each with NUL, for xargs -0.")
]


# --- index


def index(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIR",
            help="Subfolders count too; by default all folders that were indexed before.",
            autocompletion=complete_paths,
            show_default=False,
        ),
    ] = None,
    *,
    index_file: _IndexOption = None,
    form: Annotated[
        IndexFormat,
        typer.Option("--format", "-f", help="json and jsonl are for programs."),
    ] = IndexFormat.TABLE,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave out such names (*.gif) or paths (2019/*); remembered; may be repeated.",
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove pictures that are gone, however many.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the folders from the index; keep their files.")
    ] = False,
    info: Annotated[
        bool, typer.Option("--info", help="Show what is indexed, and with which model.")
    ] = False,
    model: IndexModelOption = None,
    text_model: TextModelOption = None,
    max_pixels: MaxPixelsOption = None,
    preprocessing: PreprocessingOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Index folders of pictures, or bring an index up to date.

    Only pictures that are new or changed are embedded. Interrupted, it goes on where it was. A
    picture that fails does not hold up the others; stderr says why, and the exit code is 1.

    Hidden files, trash and what network storage adds (@eaDir) are left out. Where many pictures are
    gone together, or a folder has none left, a drive may not be mounted: they stay in the index,
    and the exit code is 1, unless --prune is given.
    """
    with guarded(debug):
        if info or forget:
            _require_index(index_file)
        if info:
            found = anyio.run(_info, index_file)
            document = _info_record(found)
            is_table = form is IndexFormat.TABLE
            write_result(_pairs(document) if is_table else to_json(document), None)
        elif forget:
            if not folders:
                raise usage_error("name the folders to forget")
            removed = anyio.run(_forget, index_file, folders)
            write_result(_pairs({"removed": removed}), None)
        else:
            run = _Run(index_file, folders, exclude, form, prune=prune)
            try:
                anyio.run(partial(run.sync, model, preprocessing, text_model, max_pixels, threads))
            except KeyboardInterrupt:
                warn(run.describe_interruption())
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            run.finish()


class _Run:
    """One run of `index` over some folders."""

    def __init__(
        self,
        file: Path | None,
        folders: Sequence[Path] | None,
        exclude: Sequence[str] | None,
        form: IndexFormat,
        *,
        prune: bool,
    ) -> None:
        self._file = file
        self._folders = folders
        self._exclude = exclude
        self._form = form
        self._prune = prune
        self._latest = SyncReport()
        self._reports: list[tuple[Path, SyncReport]] = []
        self._errors: dict[str, str] = {}

    async def sync(
        self,
        model: str | None,
        preprocessing: str | None,
        text_model: str | None,
        max_pixels: int | None,
        threads: int | None,
    ) -> None:
        async with EmbeddingIndex(self._file) as opened:
            info = await opened.info()
            folders = self._folders or [Path(path) for path in info.folders]
            if not folders:
                raise usage_error("name a folder: nothing was indexed before")
            pictures = _image_model(info, model, preprocessing, threads, max_pixels)
            with self._following(pictures) as on_progress:
                async with pictures:
                    if preprocessing is not None:
                        await opened.use_preprocessing(pictures)
                    for folder in folders:
                        if not _exists(str(folder)) and await opened.keys_below(folder):
                            raise FileReadFailed(
                                f"there is not a folder {str(folder)!r}, and pictures below it are "
                                f"indexed: if it is gone for good, aioembed index --forget {folder}"
                            )
                        report = await opened.sync(
                            folder,
                            pictures,
                            exclude=self._exclude,
                            prune=self._prune,
                            on_progress=on_progress,
                        )
                        self._reports.append((folder, report))
                        self._errors |= await opened.errors(folder)
            if text_model is not None:
                words = TextEmbeddings(text_model, threads=threads)
                with ProgressLine(words):
                    async with words:
                        await opened.use_text_model(words)

    def finish(self) -> None:
        """Write what was done and say what was not.

        Raises:
            typer.Exit: A picture failed, or many are missing.
        """
        total = _added([report for _, report in self._reports])
        write_result(_encode_report(total, self._errors, self._form), None)
        for path, message in list(self._errors.items())[:_SHOWN_ERRORS]:
            warn(f"error: {message if path in message else f'{path}: {message}'}")
        if len(self._errors) > _SHOWN_ERRORS:
            warn(f"and {len(self._errors) - _SHOWN_ERRORS} more; --format json has all of them")
        if total.unsupported:
            formats = ", ".join(f"{count} {name}" for name, count in total.unsupported.items())
            hint = ' (HEIC needs: pip install "aioembed[heif]")'
            is_heif = any(name.startswith("hei") for name in total.unsupported)
            warn(f"left out, as their format is not read: {formats}{hint if is_heif else ''}")
        for folder, report in self._reports:
            if report.missing:
                warn(
                    f"error: {report.missing:,} indexed pictures are no longer in {folder}, as if "
                    "a drive were not mounted: they stay in the index; if they are deleted, run "
                    "again with --prune"
                )
        if self._errors or total.missing:
            raise typer.Exit(ExitCode.INPUT)

    def describe_interruption(self) -> str:
        report = self._latest
        if report.is_scanning:
            return "interrupted before anything was embedded: run it again"
        return (
            f"interrupted: {report.done:,} of {report.total:,} pictures are indexed and kept; "
            "run it again to go on"
        )

    @contextmanager
    def _following(self, model: ImageEmbeddings) -> Iterator[OnProgress]:
        write = _line_writer() if self._form is IndexFormat.JSONL else None
        with ProgressLine(model) as line:
            pace = Pace()

            def follow(report: SyncReport) -> None:
                self._latest = report
                if write is not None:
                    write(report)
                line.show(_sentence(report, pace))

            yield follow


def _added(reports: list[SyncReport]) -> SyncReport:
    """Return the figures of several folders together."""
    names = {field.name for field in fields(SyncReport)} - {"unsupported", "is_scanning"}
    sums = {name: sum(getattr(report, name) for report in reports) for name in names}
    unsupported = Counter[str]()
    for report in reports:
        unsupported.update(report.unsupported)
    return SyncReport(**sums, unsupported=dict(unsupported), is_scanning=False)


def _line_writer(clock: Callable[[], float] = time.monotonic) -> OnProgress:
    """Return a function that writes reports as lines, at most five a second."""
    due = clock()

    def write(report: SyncReport) -> None:
        nonlocal due
        if clock() >= due:
            due = clock() + _LINE_SECONDS
            write_result(to_json(asdict(report)), None)

    return write


def _sentence(report: SyncReport, pace: Pace) -> str:
    if report.is_scanning:
        return f"looking through the folder: {report.total:,} pictures"
    failed = f", {report.failed:,} failed" if report.failed else ""
    worked = report.embedded + report.moved
    return f"embedding: {pace.describe(report.done, report.total, worked)}{failed}"


def _encode_report(report: SyncReport, errors: dict[str, str], form: IndexFormat) -> bytes:
    if form is IndexFormat.JSONL:
        failed = [to_json({"path": path, "error": message}) for path, message in errors.items()]
        return b"".join([*failed, to_json(asdict(report))])
    if form is IndexFormat.JSON:
        return to_json({**_figures(report), "errors": errors})
    figures = _figures(report)
    del figures["unsupported"]
    return _pairs(figures)


def _figures(report: SyncReport) -> dict[str, object]:
    return {name: value for name, value in asdict(report).items() if name != "is_scanning"}


def _pairs(pairs: dict[str, object]) -> bytes:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for name, value in pairs.items():
        lines = value if isinstance(value, list) else [value]
        table.add_row(name.replace("_", " "), Text("\n".join(map(str, lines))))
    return render_table(table)


async def _info(file: Path | None) -> IndexInfo:
    async with EmbeddingIndex(file) as opened:
        return await opened.info()


def _info_record(info: IndexInfo) -> dict[str, object]:
    return {
        "index": str(info.path),
        "pictures": info.count,
        "size": decimal(info.size_bytes),
        "model": info.model.name if info.model else "",
        "text_model": info.text_model.name if info.text_model else "",
        "values": info.embedding_dim,
        "space": info.space.id if info.space else "",
        "folders": [
            f"{path} (without {', '.join(exclude)})" if exclude else path
            for path, exclude in info.folders.items()
        ],
    }


async def _forget(file: Path | None, folders: list[Path]) -> int:
    async with EmbeddingIndex(file) as opened:
        return sum([await opened.forget(folder) for folder in folders])


def _require_index(file: Path | None) -> None:
    path = file or default_index_path()
    if not path.is_file():
        raise IndexFileError(f"there is no index {str(path)!r}: make it with `aioembed index DIR`")


# --- search


def search(
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            help="A picture's path or URI, - for stdin; words where the model has a text model.",
            autocompletion=complete_paths,
        ),
    ],
    *,
    index_file: _IndexOption = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Most results.")] = 10,
    min_similarity: Annotated[
        float, typer.Option(min=-1, max=1, help="Leave out what is less similar.")
    ] = -1.0,
    form: Annotated[
        HitFormat,
        typer.Option("--format", "-f", help="paths, json and csv are for programs."),
    ] = HitFormat.TABLE,
    null: _NullOption = False,
    output: OutputOption = None,
    model: IndexModelOption = None,
    text_model: TextModelOption = None,
    preprocessing: PreprocessingOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Find the indexed pictures nearest to a picture, or to words.

    A picture that is indexed is searched by the vector that it has.
    """
    with guarded(debug):
        check_output(output, inputs=[Path(query), index_file])
        _require_index(index_file)
        call = partial(
            _search,
            index_file,
            query,
            model=model,
            preprocessing=preprocessing,
            text_model=text_model,
            threads=threads,
            k=count,
            min_similarity=min_similarity,
        )
        hits = anyio.run(call)
        write_result(_encode_hits(hits, form, plain=output is not None, null=null), output)


async def _search(
    file: Path | None,
    query: str,
    *,
    model: str | None,
    preprocessing: str | None,
    text_model: str | None,
    threads: int | None,
    k: int,
    min_similarity: float,
) -> list[Hit]:
    async with EmbeddingIndex(file) as opened:
        info = await opened.info()
        words_model = text_model or info.text_model or _text_model_of(info.model)
        if text_model is None and _is_picture(query, has_words=words_model is not None):
            stored = None
            if query != STDIN and not is_uri(query) and model is None:
                stored = await opened.stored_vector(query)
            if stored is not None:
                return await opened.search(stored, k, min_similarity=min_similarity)
            (picture,) = named_images([query])
            pictures = _image_model(info, model, preprocessing, threads)
            return await _search_with(opened, pictures, picture.image, k, min_similarity)
        if words_model is None:
            made_by = f"model, {info.model.name}," if info.model else "model"
            raise InvalidUserInput(
                f"{query!r} is not a file, and the index's {made_by} has no text model, so that "
                "words cannot be searched: index with clip-vit-base-patch32-image, or give "
                "--text-model"
            )
        words = TextEmbeddings(words_model, threads=threads)
        hits = await _search_with(opened, words, query, k, min_similarity)
        if text_model is not None and info.text_model != words.spec:
            await _remember(opened, words)
        return hits


async def _search_with(
    opened: EmbeddingIndex,
    handle: EmbeddingHandle[InputT],
    item: InputT,
    k: int,
    min_similarity: float,
) -> list[Hit]:
    with ProgressLine(handle):
        async with handle:
            return await opened.search_item(item, handle, k, min_similarity=min_similarity)


async def _remember(opened: EmbeddingIndex, words: TextEmbeddings) -> None:
    try:
        async with words:
            await opened.use_text_model(words)
    except IndexFileError as error:  # it can be searched, not written
        warn(f"the text model is not remembered: {error}")


def _image_model(
    info: IndexInfo,
    model: str | None,
    preprocessing: str | None,
    threads: int | None,
    max_pixels: int | None = None,
) -> ImageEmbeddings:
    """Return the model that was named, or the index's with the preprocessing it was given."""
    return ImageEmbeddings(
        model or info.model or DEFAULT_MODEL,
        preprocessing=preprocessing or (info.preprocessing if model is None else None),
        threads=threads,
        source_policy=image_policy(max_pixels),
    )


def _text_model_of(model: ModelSpec | None) -> ModelSpec | None:
    """Return the named text model of the same checkpoint."""
    if model is None or model.checkpoint is None:
        return None
    found = (spec for spec in MODELS.values() if spec.checkpoint == model.checkpoint)
    return next((spec for spec in found if spec.modality == "text"), None)


def _is_picture(query: str, *, has_words: bool) -> bool:
    """Return whether a query is a picture's name, of one that may be missing too."""
    if query == STDIN or is_uri(query) or _exists(query):
        return True
    looks_like_path = os.sep in query or is_picture_name(query)
    return looks_like_path and not (has_words and " " in query)


def _encode_hits(hits: list[Hit], form: HitFormat, *, plain: bool, null: bool) -> bytes:
    paths = [_shown(hit.key) for hit in hits]
    if form is HitFormat.PATHS:
        return _lines(paths, null=null)
    if form is HitFormat.JSON:
        return to_json([asdict(hit) for hit in hits])
    if form is HitFormat.CSV:
        return to_csv(
            [["key", "similarity"], *([hit.key, round(hit.similarity, 6)] for hit in hits)]
        )
    return _hit_table(hits, plain=plain) if hits else b""


def _hit_table(hits: list[Hit], *, plain: bool) -> bytes:
    has_bar = shutil.get_terminal_size().columns >= _NARROW
    headings = ("similarity", "", "picture") if has_bar else ("similarity", "picture")
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for hit in hits:
        share = max(0.0, hit.similarity)
        bar = ProgressBar(total=1, completed=share, width=_BAR_WIDTH, style="dim")
        gone = " (not there now)" if Path(hit.key).is_absolute() and not _exists(hit.key) else ""
        name = Text(f"{_shown(hit.key)}{gone}")
        table.add_row(f"{hit.similarity:.3f}", *([bar] if has_bar else []), name)
    return render_table(table, plain=plain)


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # words may be longer than a name may be


def _shown(key: str) -> str:
    """Return a path relative to the current folder where it lies below it."""
    below = str(Path.cwd()).rstrip(os.sep) + os.sep
    return key.removeprefix(below)


def _lines(paths: list[str], *, null: bool) -> bytes:
    end = "\0" if null else "\n"
    return "".join(f"{path}{end}" for path in paths).encode()


# --- duplicates


def duplicates(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Only pictures below it; by default all that are indexed.",
            autocompletion=complete_paths,
            show_default=False,
        ),
    ] = None,
    *,
    above: Annotated[
        float, typer.Option(min=0.01, max=1, help="Least similarity of two in one group.")
    ] = 0.95,
    index_file: _IndexOption = None,
    form: Annotated[
        GroupFormat, typer.Option("--format", "-f", help="paths and json are for programs.")
    ] = GroupFormat.TABLE,
    null: _NullOption = False,
    output: OutputOption = None,
    debug: DebugOption = False,
) -> None:
    """Show groups of indexed pictures that are nearly the same.

    No pair is missed. Two pictures are in one group where a chain of pairs that are similar enough
    leads from one to the other. The similarities shown are those to the group's first.
    """
    with guarded(debug):
        check_output(output, inputs=[index_file])
        _require_index(index_file)
        groups = anyio.run(_duplicates, index_file, folder, above)
        write_result(_encode_groups(groups, form, plain=output is not None, null=null), output)


async def _duplicates(file: Path | None, folder: Path | None, above: float) -> list[list[Hit]]:
    async with EmbeddingIndex(file) as opened:
        if folder is not None and not await opened.keys_below(folder):
            raise FileReadFailed(
                f"nothing below {str(folder)!r} is indexed: run `aioembed index {folder}` first"
            )
        return await opened.duplicates(folder, above=above)


def _encode_groups(groups: list[list[Hit]], form: GroupFormat, *, plain: bool, null: bool) -> bytes:
    if form is GroupFormat.JSON:
        return to_json([[asdict(hit) for hit in group] for group in groups])
    if form is GroupFormat.PATHS:
        separator = b"\0" if null else b"\n"
        parts = [_lines([_shown(hit.key) for hit in group], null=null) for group in groups]
        return separator.join(parts)
    tables = [_hit_table(group, plain=plain) for group in groups]
    shown = sum(map(len, groups))
    tables.append(f"{len(groups)} groups of {shown} pictures\n".encode())
    return b"\n".join(tables)
