"""`aioembed doctor`: what this installation has, and what is wrong with it, in words."""

from __future__ import annotations

from typing import Annotated

import anyio
import typer
from rich.table import Table
from rich.text import Text

from .checks import Check, Verdict
from .checkup import examine
from .exits import ExitCode
from .formats import to_json
from .guard import guarded, warn
from .models import ListingFormat
from .options import DebugOption
from .output import write_result
from .tables import render_table

__all__ = ["doctor"]

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BROKEN: "bold red"}


def doctor(
    form: Annotated[
        ListingFormat, typer.Option("--format", "-f", help="json is for programs.")
    ] = ListingFormat.TABLE,
    debug: DebugOption = False,
) -> None:
    """Check this installation.

    Says in words what is broken, and exits with 6 if anything is.
    """
    with guarded(debug):
        checks = anyio.run(examine)
        if form is ListingFormat.JSON:
            write_result(to_json([check.as_record() for check in checks]), None)
        else:
            write_result(render_table(_table(checks), wrap=True), None)
        broken = [check.name for check in checks if check.verdict is Verdict.BROKEN]
        if broken:
            warn(f"broken: {', '.join(broken)}")
            raise typer.Exit(ExitCode.INSTALL)


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        lines = [check.found, *([f"→ {check.advice}"] if check.advice else [])]
        table.add_row(verdict, check.name, Text("\n".join(lines)))
    return table
