"""Small pictures for the examples, drawn on demand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def draw(number: int, side: int = 48) -> bytes:
    """Return a PNG file of coarse random blocks, a different one for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int) -> Iterator[Path]:
    """Write pictures into a folder, one per iteration, and yield their paths."""
    for number in range(count):
        path = folder / f"{number:05}.png"
        path.write_bytes(draw(number))
        yield path
