"""`aioembed models`, `download` and `cache`: the named models, and the files of downloaded ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from aioembed import MODELS
from aioembed._loader import model_resources
from aioembed._packed import PackedFolder, PackedRecord
from aioembed.download import Cache, CachedFile, Fetcher, Resource
from aioembed.download import Progress as Snapshot
from aioembed.errors import AioembedError, IntegrityError
from aioembed.models import local_file, resolve_model

from . import ExitCode
from .common import (
    DebugOption,
    ListingFormat,
    complete_models,
    complete_paths,
    guarded,
    render_table,
    report_error,
    to_json,
    usage_error,
    warn,
    write_result,
)

__all__ = ["cache_app", "download", "models"]


# --- models


def models(
    form: Annotated[
        ListingFormat, typer.Option("--format", "-f", help="json is for programs.")
    ] = ListingFormat.TABLE,
    pin: Annotated[
        Path | None,
        typer.Option(
            "--pin",
            metavar="FILE",
            help="Write the hashes of the downloaded models to FILE, as JSON.",
            autocompletion=complete_paths,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """List the models that have a name."""
    with guarded(debug):
        if pin is not None:
            pinned = _pins(anyio.run(Cache().list))
            if not pinned:
                warn("no model is in the cache: `aioembed download NAME` first")
            write_result(to_json(pinned), pin)
        elif form is ListingFormat.JSON:
            specs = [spec.model_dump(mode="json") for spec in MODELS.values()]
            write_result(to_json(specs), None)
        else:
            write_result(render_table(_model_table(), wrap=True), None)


def _pins(files: Iterable[CachedFile]) -> dict[str, dict[str, str | int]]:
    """Return what identifies each file, by the model's name where it has one, else by its URL."""
    names = {spec.source: spec.name for spec in MODELS.values()}
    tokenizers = {spec.tokenizer_source: f"{spec.name} tokenizer" for spec in MODELS.values()}
    return {
        names.get(file.url) or tokenizers.get(file.url) or file.url: {
            "url": file.url,
            "sha256": file.sha256,
            "size_bytes": file.size,
        }
        for file in files
    }


def _model_table() -> Table:
    table = _table("name", "embeds", "dim")
    table.add_column("what it is")
    for spec in MODELS.values():
        cells = (spec.name, spec.modality, str(spec.embedding_dim or "?"), spec.summary)
        table.add_row(*(Text(cell) for cell in cells))
    return table


# --- download


class _Pin(BaseModel):
    """One file in what `aioembed models --pin` writes."""

    url: str
    sha256: str
    size_bytes: NonNegativeInt


_PINS = TypeAdapter(dict[str, _Pin])


def download(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name from `aioembed models`, or a URL; may be left out with --pins.",
            autocompletion=complete_models,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="The file's published hash."),
    ] = None,
    pins: Annotated[
        Path | None,
        typer.Option(
            "--pins",
            metavar="FILE",
            help="Require the hashes that `aioembed models --pin FILE` wrote; without MODEL, "
            "download every file of it.",
            autocompletion=complete_paths,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Download a model into the cache, or go on with it.

    Prints where its files are.
    """
    with guarded(debug):
        if sha256 is not None and (pins is not None or model is None):
            raise usage_error("--sha256 goes with MODEL, and not with --pins")
        pinned = None if pins is None else _read_pins(pins)
        if model is None:
            if pinned is None:
                raise usage_error("name a MODEL, or give --pins FILE")
            name, wanted = f"what {pins} lists", list(pinned.values())
        else:
            spec = resolve_model(model, sha256=sha256)
            path = local_file(spec.source)
            if path is not None:
                warn(f"{spec.name} is on this machine already")
                write_result(f"{path}\n".encode(), None)
                return
            name, wanted = spec.name, model_resources(spec)
            if pinned is not None:
                wanted = [_pinned(resource, pinned, pins) for resource in wanted]
        files = anyio.run(_fetch, name, wanted)
        write_result("".join(f"{file.path}\n" for file in files).encode(), None)


def _read_pins(path: Path) -> dict[str, Resource]:
    """Return the files that a list of pins requires, by their URLs."""
    try:
        pins = _PINS.validate_json(path.read_bytes()).values()
        resources = [Resource(pin.url, pin.sha256, pin.size_bytes) for pin in pins]
    except OSError as exc:
        raise usage_error(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValidationError, AioembedError) as exc:
        raise usage_error(f"{path} is not what `aioembed models --pin` writes") from exc
    return {resource.canonical_url: resource for resource in resources}


def _pinned(resource: Resource, pinned: dict[str, Resource], path: Path | None) -> Resource:
    if resource.canonical_url not in pinned:
        raise usage_error(f"{path} has no hash of {resource.shown}")
    return pinned[resource.canonical_url]


async def _fetch(name: str, wanted: list[Resource]) -> list[CachedFile]:
    fetcher = Fetcher(Cache())
    cached = await fetcher.find_cached(wanted)
    if cached is not None:
        warn(f"{name} is in the cache already")
        return cached
    console = Console(stderr=True)
    if not console.is_terminal:
        warn(f"downloading {name}")
        return await fetcher.fetch(wanted)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def show(snapshot: Snapshot) -> None:
            bar.update(task, completed=snapshot.received, total=snapshot.total)

        return await fetcher.fetch(wanted, on_progress=show)


# --- cache

cache_app = typer.Typer(
    name="cache", no_args_is_help=True, help="Look at, check and tidy the downloaded models."
)

_WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="A model's name, a URL, or a file's name as `cache list` shows it.",
        autocompletion=complete_models,
    ),
]
_AllOption = Annotated[bool, typer.Option("--all", help="Every file.")]


@cache_app.command("list")
def list_files(
    form: Annotated[
        ListingFormat, typer.Option("--format", "-f", help="json is for programs.")
    ] = ListingFormat.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the files in the cache, and their packed weights."""
    with guarded(debug):
        cache = Cache()
        files = anyio.run(cache.list)
        packed = PackedFolder(cache.directory).records()
        if form is ListingFormat.JSON:
            kept = [_record(file) for file in files]
            write_result(to_json(kept + [_packed_record(record) for record in packed]), None)
        else:
            write_result(render_table(_file_table(files)), None)
            if packed:
                write_result(b"\n" + render_table(_packed_table(packed)), None)


@cache_app.command()
def size(debug: DebugOption = False) -> None:
    """Print how many bytes the cache takes.

    Unfinished downloads and packed weights count.
    """
    with guarded(debug):
        cache = Cache()
        total = anyio.run(cache.total_size) + PackedFolder(cache.directory).total_size()
        write_result(f"{total}\n".encode(), None)


@cache_app.command()
def verify(what: _WhatArgument = None, debug: DebugOption = False) -> None:
    """Hash files again: those that are named, or all. A damaged one is downloaded again."""
    with guarded(debug):
        cache = Cache()
        files = anyio.run(cache.list)
        damaged = 0
        for file in _chosen(files, what) if what else files:
            try:
                anyio.run(cache.verify, file)
            except IntegrityError as exc:
                report_error(exc, debug=debug)
                damaged += 1
            else:
                write_result(f"{file.sha256}  {file.path}\n".encode(), None)
        if damaged:
            raise typer.Exit(ExitCode.MODEL)


@cache_app.command()
def delete(
    what: _WhatArgument = None, everything: _AllOption = False, debug: DebugOption = False
) -> None:
    """Delete files and what is recorded of them.

    A loaded model keeps a file that it uses; one that is being downloaded is refused.
    """
    with guarded(debug):
        if bool(what) == everything:
            raise usage_error("name the files to delete, or give --all")
        cache = Cache()
        files = anyio.run(cache.list)
        packed = PackedFolder(cache.directory)
        keys = {record.key for record in packed.records()}
        named = [name for name in what or [] if name not in keys]
        for file in files if everything else _chosen(files, named):
            freed = anyio.run(cache.delete, file)
            write_result(f"{freed}  {file.path}\n".encode(), None)
        for key in sorted(keys if everything else keys.intersection(what or [])):
            write_result(f"{packed.delete(key)}  {packed.path / key}\n".encode(), None)


@cache_app.command()
def prune(
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Files not used for so long."),
    ] = None,
    max_size: Annotated[
        float | None,
        typer.Option("--max-size", min=0, metavar="MB", help="Keep the last used up to this."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Delete unfinished downloads, and old files where asked to.

    Packed weights that this version, on this CPU, cannot use are deleted too.
    """
    with guarded(debug):
        cache = Cache()
        call = partial(
            cache.prune,
            older_than=None if older_than is None else timedelta(days=older_than),
            max_size=None if max_size is None else int(max_size * 1e6),
        )
        pruned = anyio.run(call)
        freed = pruned.freed + PackedFolder(cache.directory).prune()
        lines = [f"{file.path}\n" for file in pruned.files]
        write_result("".join([*lines, f"{freed} bytes freed\n"]).encode(), None)


def _chosen(files: tuple[CachedFile, ...], what: list[str]) -> list[CachedFile]:
    chosen = []
    for name in what:
        urls = {name}
        if name in MODELS:
            urls = {resource.canonical_url for resource in model_resources(MODELS[name])}
        found = [file for file in files if file.url in urls or name in {file.name, file.path.name}]
        if not found:
            raise usage_error(f"{name!r} is not in the cache: see `aioembed cache list`")
        chosen += found
    return chosen


def _record(file: CachedFile) -> dict[str, Any]:
    times = {"fetched_at": file.fetched_at.isoformat(), "used_at": file.used_at.isoformat()}
    return asdict(file) | {"path": str(file.path)} | times


def _table(*headings: str) -> Table:
    """Return an empty table without lines, whose columns are not wrapped."""
    columns = (Column(heading, no_wrap=True) for heading in headings)
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _file_table(files: tuple[CachedFile, ...]) -> Table:
    table = _table("file", "size", "hash from", "last used", "url")
    for file in files:
        table.add_row(
            Text(file.name),
            decimal(file.size),
            "publisher" if file.trusted else "first download",
            f"{file.used_at:%Y-%m-%d %H:%M}",
            Text(file.url),
        )
    return table


def _packed_record(record: PackedRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"format"}) | {"is_current": record.is_current}


def _packed_table(records: list[PackedRecord]) -> Table:
    table = _table("packed weights", "size", "of", "usable")
    for record in records:
        usable = "yes" if record.is_current else "no: cache prune deletes it"
        table.add_row(record.key, decimal(record.size), Text(record.program), usable)
    return table
