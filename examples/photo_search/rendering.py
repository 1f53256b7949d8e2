"""Pictures and bars made of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.color import Color as Background
from textual.filter import LineFilter
from textual.strip import Strip
from thumbnailer import COLUMNS, ROWS

from aioembed.index import Hit

Row = list[Segment]

_BOLD, _PLAIN, _DIM, _GREEN = (Style.parse(name) for name in ("bold", "none", "dim", "green"))


def half_blocks(pixels: bytes) -> Iterator[Row]:
    """Make a thumbnail's rows of half blocks, two pixels in each; blanks where there is none."""
    for start in range(0, 2 * ROWS * COLUMNS, 2 * COLUMNS):
        colors = [
            Color.from_rgb(*pixels[3 * place : 3 * place + 3])
            for place in range(start, start + 2 * COLUMNS)
            if pixels
        ]
        yield [
            Segment("▀", Style(color=upper, bgcolor=lower))
            for upper, lower in zip(colors[:COLUMNS], colors[COLUMNS:], strict=True)
        ] or [Segment(" " * COLUMNS)]


@dataclass(frozen=True)
class Canvas:
    """What lines are drawn for: their width, what is behind them, the terminal's colours."""

    width: int
    behind: Style
    filters: Sequence[LineFilter]
    background: Background
    console: Console

    def fit(self, line: Strip) -> Strip:
        return line.adjust_cell_length(self.width, self.behind)

    def finish(self, line: Strip) -> Strip:
        """Return a line as the terminal can show it, with what is to be written for it."""
        for line_filter in self.filters:
            line = line.apply_filter(line_filter, self.background)
        line.render(self.console)  # is kept in the line
        return line


def draw_result(hit: Hit, pixels: bytes, canvas: Canvas) -> Iterator[Strip]:
    """Make a result's lines one by one, as each takes most of a millisecond."""
    for line in result_lines(hit, pixels, canvas.width - 1):
        yield canvas.finish(canvas.fit(line.apply_style(canvas.behind)))


def result_lines(hit: Hit, pixels: bytes, width: int) -> Iterator[Strip]:
    """Make a result: the thumbnail, and beside it name, similarity and a bar of it."""
    room = max(4, width - COLUMNS - 2)
    name = Text(Path(hit.key).name)
    name.truncate(room, overflow="ellipsis")
    folder = Text(str(Path(hit.key).parent))
    if folder.cell_len > room:
        folder = Text(f"…{folder.plain[1 - room :]}")
    filled = round(room * max(0.0, hit.similarity))
    beside = [
        [Segment(name.plain, _BOLD)],
        [Segment(f"{hit.similarity:.3f}", _PLAIN)],
        [Segment("━" * filled, _GREEN), Segment("━" * (room - filled), _DIM)],
        [Segment(folder.plain, _DIM)],
    ]
    for row, words in zip(half_blocks(pixels), beside, strict=True):
        yield Strip([*row, Segment("  "), *words])
