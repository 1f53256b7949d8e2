"""Pictures and bars made of characters."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from anyio import to_thread
from PIL import Image, ImageOps
from rich.color import Color
from rich.style import Style
from rich.text import Text

from aioembed.index import Hit

COLUMNS, ROWS = 12, 4
KEPT = 500


class Thumbnails:
    """Thumbnails by path, made in worker threads; the latest ones are kept."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, list[Text]] = OrderedDict()

    async def get(self, path: str) -> list[Text]:
        """Return the rows of a thumbnail, blank ones for a picture that cannot be read."""
        if path not in self._made:
            self._made[path] = await to_thread.run_sync(thumbnail, Path(path))
        self._made.move_to_end(path)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return self._made[path]


def thumbnail(path: Path) -> list[Text]:
    """Return a picture as rows of half blocks, two pixels in each; blocks."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (4 * COLUMNS, 8 * ROWS))
            small = ImageOps.fit(picture.convert("RGB"), (COLUMNS, 2 * ROWS))
    except (OSError, Image.DecompressionBombError):
        return [Text(" " * COLUMNS) for _ in range(ROWS)]
    pixels = list(zip(*[iter(small.tobytes())] * 3, strict=True))
    return [
        Text.assemble(
            *(
                ("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
                for upper, lower in zip(
                    pixels[2 * row * COLUMNS : (2 * row + 1) * COLUMNS],
                    pixels[(2 * row + 1) * COLUMNS : (2 * row + 2) * COLUMNS],
                    strict=True,
                )
            )
        )
        for row in range(ROWS)
    ]


def result_text(hit: Hit, rows: list[Text], width: int) -> Text:
    """Return a result: the thumbnail, and beside it name, similarity and a bar of it."""
    room = max(4, width - COLUMNS - 2)
    name = Text(Path(hit.key).name, "bold")
    name.truncate(room, overflow="ellipsis")
    folder = Text(str(Path(hit.key).parent), "dim")
    if folder.cell_len > room:
        folder = Text(f"…{folder.plain[1 - room :]}", "dim")
    filled = round(room * max(0.0, hit.similarity))
    bar = Text.assemble(("━" * filled, "green"), ("━" * (room - filled), "dim"))
    beside = [name, Text(f"{hit.similarity:.3f}"), bar, folder]
    lines = [Text.assemble(row, "  ", words) for row, words in zip(rows, beside, strict=True)]
    return Text("\n").join(lines)
