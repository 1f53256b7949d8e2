"""`aioembed models`: what `--model` knows by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.table import Table
from rich.text import Text

from aioembed import MODELS
from aioembed.download import Cache, CachedFile

from .common import (
    DebugOption,
    ListingFormat,
    guarded,
    render_table,
    to_json,
    warn,
    write_result,
)

__all__ = ["models"]


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
            write_result(render_table(_table(), wrap=True), None)


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


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", "embeds", "dim", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for spec in MODELS.values():
        cells = (spec.name, spec.modality, str(spec.embedding_dim or "?"), spec.summary)
        table.add_row(*(Text(cell) for cell in cells))
    return table
