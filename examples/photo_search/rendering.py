"""Pictures and bars made of characters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread
from PIL import Image, ImageOps
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.color import Color as Background
from textual.filter import LineFilter
from textual.strip import Strip

from aioembed.index import Hit

COLUMNS, ROWS = 12, 4
KEPT = 500

Row = list[Segment]

_BOLD, _PLAIN, _DIM, _GREEN = (Style.parse(name) for name in ("bold", "none", "dim", "green"))


class Thumbnails:
    """Thumbnails by path, made in worker threads; the latest ones are kept."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, list[Row]] = OrderedDict()

    async def get(self, path: str) -> list[Row]:
        """Return the rows of a thumbnail, blank ones for a picture that cannot be read."""
        if path not in self._made:
            self._made[path] = await to_thread.run_sync(thumbnail, Path(path))
        self._made.move_to_end(path)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return self._made[path]


def thumbnail(path: Path) -> list[Row]:
    """Return a picture as rows of half blocks, two pixels in each; blanks if it cannot be read."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (4 * COLUMNS, 8 * ROWS))
            small = ImageOps.fit(picture.convert("RGB"), (COLUMNS, 2 * ROWS))
    except (OSError, Image.DecompressionBombError):
        return [[Segment(" " * COLUMNS)] for _ in range(ROWS)]
    colors = [Color.from_rgb(*rgb) for rgb in zip(*[iter(small.tobytes())] * 3, strict=True)]
    lines = [colors[start : start + COLUMNS] for start in range(0, len(colors), COLUMNS)]
    return [
        [
            Segment("▀", Style(color=upper, bgcolor=lower))
            for upper, lower in zip(*pair, strict=True)
        ]
        for pair in zip(lines[::2], lines[1::2], strict=True)
    ]


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


def draw_results(
    hits: Sequence[Hit], thumbnails: Sequence[list[Row]], canvas: Canvas
) -> list[Strip]:
    """Return the lines of all results; takes milliseconds, so it is for a worker thread."""
    return [
        canvas.finish(canvas.fit(line.apply_style(canvas.behind)))
        for hit, rows in zip(hits, thumbnails, strict=True)
        for line in result_lines(hit, rows, canvas.width - 1)
    ]


def result_lines(hit: Hit, rows: list[Row], width: int) -> list[Strip]:
    """Return a result: the thumbnail, and beside it name, similarity and a bar of it."""
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
    return [Strip([*row, Segment("  "), *words]) for row, words in zip(rows, beside, strict=True)]
