"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["base_names", "render_table", "shorten_middle", "similarity_table"]

_NAME_WIDTH = 24
_UNBOUNDED = 100_000


def similarity_table(names: Sequence[str], similarities: NDArray[np.floating]) -> Table:
    """Return a table of similarities, the nearest other image of each row in bold.

    Args:
        names: Of the images, one per row.
        similarities: `(n, n)`, from -1 to 1.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("cosine similarity", no_wrap=True)
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True, min_width=5)
    others = np.where(np.eye(len(names), dtype=bool), -np.inf, similarities)
    for index, (name, row) in enumerate(zip(names, similarities, strict=True)):
        nearest = int(np.argmax(others[index])) if len(names) > 1 else -1
        cells = [
            Text(f"{value:.2f}", style="bold green" if column == nearest else "")
            for column, value in enumerate(row)
        ]
        table.add_row(str(index + 1), Text(shorten_middle(name, _NAME_WIDTH)), *cells)
    return table


def render_table(table: Table, *, wrap: bool = False, plain: bool = False) -> bytes:
    """Return a table as UTF-8 text, coloured where stdout is a terminal.

    Args:
        table: What to render.
        wrap: Fold its cells where the terminal is narrow; otherwise its lines are as long as they
            need to be.
        plain: Never colour it.
    """
    console = Console(file=sys.stdout, no_color=plain, force_terminal=False if plain else None)
    if not wrap:
        unbounded = console.options.update(max_width=_UNBOUNDED)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()).encode()


def base_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of paths and URLs, or all of each where those would be ambiguous."""
    last = [name if name.startswith("data:") else name.rpartition("/")[2] for name in names]
    return last if len(set(last)) == len(set(names)) and all(last) else list(names)


def shorten_middle(text: str, width: int) -> str:
    """Return `text` in at most `width` characters, its middle left out where it is longer."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
