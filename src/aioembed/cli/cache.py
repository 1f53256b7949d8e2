"""`aioembed cache`: look at, check and tidy the folder of downloaded models."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import anyio
import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from aioembed._loader import model_resources
from aioembed._packed import PackedFolder, PackedRecord
from aioembed.download import Cache, CachedFile
from aioembed.errors import IntegrityError
from aioembed.models import MODELS

from . import ExitCode
from .common import (
    DebugOption,
    ListingFormat,
    guarded,
    render_table,
    report_error,
    to_json,
    usage_error,
    write_result,
)

__all__ = ["cache_app"]

cache_app = typer.Typer(
    name="cache", no_args_is_help=True, help="Look at, check and tidy the downloaded models."
)

_WhatArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE", help="A model's name, a URL, or a file's name as `cache list` shows it."
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
    """List the files in the cache, and the packed weights that were made from them."""
    with guarded(debug):
        cache = Cache()
        files = anyio.run(cache.list)
        packed = PackedFolder(cache.directory).records()
        if form is ListingFormat.JSON:
            kept = [_record(file) for file in files]
            write_result(to_json(kept + [_packed_record(record) for record in packed]), None)
        else:
            write_result(render_table(_table(files)), None)
            if packed:
                write_result(b"\n" + render_table(_packed_table(packed)), None)


@cache_app.command()
def size(debug: DebugOption = False) -> None:
    """Print the bytes of everything in the cache, with unfinished downloads and packed weights."""
    with guarded(debug):
        cache = Cache()
        total = anyio.run(cache.total_size) + PackedFolder(cache.directory).total_size()
        write_result(f"{total}\n".encode(), None)


@cache_app.command()
def verify(what: _WhatArgument = None, debug: DebugOption = False) -> None:
    """Hash files again; all where none is named. A damaged one is discarded."""
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
    """Delete files and what is recorded of them; one that a loaded model uses is refused."""
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
    """Delete what interrupted downloads left, and old files where asked to.

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


def _table(files: tuple[CachedFile, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("file", "size", "hash from", "last used", "url"):
        table.add_column(heading, no_wrap=True)
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
    return record.model_dump() | {"is_current": record.is_current}


def _packed_table(records: list[PackedRecord]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("packed weights", "size", "of", "usable"):
        table.add_column(heading, no_wrap=True)
    for record in records:
        usable = "yes" if record.is_current else "no: cache prune deletes it"
        table.add_row(record.key, decimal(record.size), Text(record.program), usable)
    return table
