"""Indexes in temporary files, and folders of pictures to follow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aioembed import EmbeddingSpace

SPACE = EmbeddingSpace(base="0123456789abcdef")
LONG_AGO_NS = 1_700_000_000_000_000_000


def draw(path: Path, seed: int) -> Path:
    """Save a picture of coarse random blocks, last changed long ago."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((64, 48), Image.Resampling.NEAREST).save(path)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    """Where an index is to be."""
    return tmp_path / "index.db"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of four pictures, one of them in a subfolder, and a text."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "c.jpg", "trip/d.png")):
        draw(folder / name, seed)
    (folder / "notes.txt").write_text("no picture")
    return folder
