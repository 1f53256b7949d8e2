"""`aioembed download`: bring a model's files into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import anyio
import typer
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError
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
from aioembed.errors import AioembedError
from aioembed.models import local_file, resolve_model

from .common import DebugOption, guarded, usage_error, warn, write_result

__all__ = ["download"]


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
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Download a model into the cache, or go on with it; prints where its files are."""
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
