"""Rebuild the photographs that ship: `python -m tests.build_photographs`, with scikit-image there.

They are the sample images of scikit-image 0.26 that their photographers put into the public domain,
at the size that the demonstrations need. `SOURCES.md` beside them says whose they are.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image

SAMPLES = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "photographer": "camera.png",
    "rocket": "rocket.jpg",
    "stars": "hubble_deep_field.jpg",
}
"""File names of scikit-image's data by the names that they have here."""

_SHORTEST_SIDE = 288
_QUALITY = 85


def build(folder: Path) -> None:
    """Write each photograph as a JPEG, its shortest side 288 pixels."""
    data = Path(str(files("skimage"))) / "data"
    for name, file in SAMPLES.items():
        with Image.open(data / file) as sample:
            factor = _SHORTEST_SIDE / min(sample.size)
            size = (round(sample.width * factor), round(sample.height * factor))
            small = sample.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            small.save(folder / f"{name}.jpg", quality=_QUALITY, optimize=True)


if __name__ == "__main__":
    build(Path(sys.argv[1] if sys.argv[1:] else "src/aioembed/data/photographs"))
