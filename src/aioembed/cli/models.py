"""`aioembed models`: what `--model` knows by name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from aioembed import MODELS

from .common import DebugOption, ListingFormat, guarded, render_table, to_json, write_result

__all__ = ["models"]


def models(
    form: Annotated[
        ListingFormat, typer.Option("--format", "-f", help="json is for programs.")
    ] = ListingFormat.TABLE,
    debug: DebugOption = False,
) -> None:
    """List the models that have a name."""
    with guarded(debug):
        if form is ListingFormat.JSON:
            specs = [spec.model_dump(mode="json") for spec in MODELS.values()]
            write_result(to_json(specs), None)
        else:
            write_result(render_table(_table(), wrap=True), None)


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", "embeds", "dim", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for spec in MODELS.values():
        cells = (spec.name, spec.modality, str(spec.embedding_dim or "?"), spec.summary)
        table.add_row(*(Text(cell) for cell in cells))
    return table
