"""What a container's walk finds, and the bounds that all walks share."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ImageTooLarge

__all__ = ["MAX_BLOCKS", "Container", "refuse_metadata"]

MAX_BLOCKS = 65_536
"""Most chunks, segments or blocks that a walk passes over: a bound on time, not on pixels."""


class Container(NamedTuple):
    """An encoded image with its metadata read and, where that could do harm, cut out.

    Attributes:
        payload: The bytes for the decoder.
        size: Width and height in pixels that the header states, or None where only the decoder
            can tell.
        orientation: EXIF's, 1 to 8, still to be applied to the pixels.
    """

    payload: bytes
    size: tuple[int, int] | None
    orientation: int = 1


def refuse_metadata(what: str) -> ImageTooLarge:
    """Return the error for an image whose metadata, not its pixels, goes beyond all bounds."""
    return ImageTooLarge(f"{what}. Save the image again without metadata")
