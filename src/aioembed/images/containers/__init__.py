"""Bounded walks over image containers, made before any decoder sees the bytes."""

from __future__ import annotations

from collections.abc import Callable

from ..policy import ImageFormat
from .container import Container
from .gif import walk_gif
from .ifd import orientation_of
from .jpeg import walk_jpeg
from .png import walk_png
from .tiff import walk_tiff
from .webp import walk_webp

__all__ = ["Container", "orientation_of", "walk"]

_WALKS: dict[ImageFormat, Callable[[bytes], Container]] = {
    "JPEG": walk_jpeg,
    "PNG": walk_png,
    "GIF": walk_gif,
    "WEBP": walk_webp,
    "TIFF": walk_tiff,
}


def walk(data: bytes, image_format: ImageFormat) -> Container:
    """Find size and orientation of an encoded image, and cut out metadata that could do harm.

    Args:
        data: The encoded image.
        image_format: Its format.

    Raises:
        ImageDecodeError: The container is damaged.
        ImageTooLarge: Its metadata goes beyond all bounds.
    """
    found = _WALKS.get(image_format)
    return found(data) if found else Container(data, None)
