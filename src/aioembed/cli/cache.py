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

from aioembed.download import Cache, CachedFile
from aioembed.errors import IntegrityError
from aioembed.handle.remote import model_resources
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
    """List the files in the cache."""
    with guarded(debug):
        files = anyio.run(Cache().list)
        if form is ListingFormat.JSON:
            write_result(to_json([_record(file) for file in files]), None)
        else:
            write_result(render_table(_table(files)), None)


@cache_app.command()
def size(debug: DebugOption = False) -> None:
    """Print the bytes of everything in the cache, unfinished downloads included."""
    with guarded(debug):
        write_result(f"{anyio.run(Cache().total_size)}\n".encode(), None)


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
        for file in files if everything else _chosen(files, what or []):
            freed = anyio.run(cache.delete, file)
            write_result(f"{freed}  {file.path}\n".encode(), None)


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
    """Delete what interrupted downloads left, and old files where asked to."""
    with guarded(debug):
        call = partial(
            Cache().prune,
            older_than=None if older_than is None else timedelta(days=older_than),
            max_size=None if max_size is None else int(max_size * 1e6),
        )
        pruned = anyio.run(call)
        lines = [f"{file.path}\n" for file in pruned.files]
        write_result("".join([*lines, f"{pruned.freed} bytes freed\n"]).encode(), None)


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
