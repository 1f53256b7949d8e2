"""Photographs in the public domain, and near-duplicates made from pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

__all__ = ["near_duplicates", "photograph_files", "photographs"]

_FOLDER = Path(__file__).parents[1] / "data" / "photographs"


def photograph_files() -> dict[str, Path]:
    """Return the files of the photographs that ship with the library, by what they show.

    They are JPEGs with a shortest side of 288 pixels; `SOURCES.md` beside them names source and
    licence of each.
    """
    return {file.stem: file for file in sorted(_FOLDER.glob("*.jpg"))}


def photographs() -> dict[str, Image.Image]:
    """Return the photographs that ship with the library, RGB, by what they show."""
    return {name: _opened(file) for name, file in photograph_files().items()}


def near_duplicates(image: Image.Image) -> dict[str, Image.Image]:
    """Return what a picture becomes on its way through the web, by the name of the change.

    Args:
        image: RGB.

    Returns:
        RGB pictures: half the size, saved as JPEG of quality 20, 40 % darker and brighter, a tenth
        of each side cropped, mirrored, without colour, and with a bar for a caption.
    """
    return {name: change(image) for name, change in _CHANGES.items()}


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _smaller(image: Image.Image) -> Image.Image:
    size = (max(1, image.width // 2), max(1, image.height // 2))
    return image.resize(size, Image.Resampling.BICUBIC)


def _recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20)
    return Image.open(file).convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    left, top = image.width // 10, image.height // 10
    return image.crop((left, top, image.width - left, image.height - top))


def _captioned(image: Image.Image) -> Image.Image:
    captioned = image.copy()
    top = image.height - max(1, image.height // 7)
    ImageDraw.Draw(captioned).rectangle((0, top, image.width, image.height), fill=(0, 0, 0))
    return captioned


_CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": _smaller,
    "jpeg": _recompressed,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "cropped": _cropped,
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "captioned": _captioned,
}
