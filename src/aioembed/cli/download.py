"""`aioembed download`: bring a model's files into the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from aioembed._loader import model_resources
from aioembed.download import Cache, CachedFile, Fetcher, Resource
from aioembed.download import Progress as Snapshot
from aioembed.models import ModelSpec, local_file, resolve_model

from .common import DebugOption, guarded, warn, write_result

__all__ = ["download"]


def download(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `aioembed models`, or a URL.")
    ],
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="The file's published hash."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Download a model into the cache, or go on with it; prints where its files are."""
    with guarded(debug):
        spec = resolve_model(model)
        path = local_file(spec.source)
        if path is not None:
            warn(f"{spec.name} is on this machine already")
            write_result(f"{path}\n".encode(), None)
            return
        wanted = model_resources(spec)
        if sha256 is not None:
            wanted[0] = replace(wanted[0], sha256=sha256)
        files = anyio.run(_fetch, spec, wanted)
        write_result("".join(f"{file.path}\n" for file in files).encode(), None)


async def _fetch(spec: ModelSpec, wanted: list[Resource]) -> list[CachedFile]:
    fetcher = Fetcher(Cache())
    cached = await fetcher.find_cached(wanted)
    if cached is not None:
        warn(f"{spec.name} is in the cache already")
        return cached
    console = Console(stderr=True)
    if not console.is_terminal:
        warn(f"downloading {spec.name}")
        return await fetcher.fetch(wanted)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(spec.name, total=None)

        def show(snapshot: Snapshot) -> None:
            bar.update(task, completed=snapshot.received, total=snapshot.total)

        return await fetcher.fetch(wanted, on_progress=show)
