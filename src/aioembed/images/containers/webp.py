"""Walk over a WebP's chunks (RFC 9649, section 2).

The decoder makes room for the canvas as soon as it is created, so the size must be known before.
"""

from __future__ import annotations

from ...errors import ImageDecodeError
from .container import MAX_BLOCKS, Container, refuse_metadata
from .ifd import orientation_of

__all__ = ["walk_webp"]

_FIRST_CHUNK = 12
_HEADER_BYTES = 30
_LOSSLESS = 0x2F


def walk_webp(data: bytes) -> Container:
    """Find a WebP's size and orientation.

    Raises:
        ImageDecodeError: The header is damaged.
        ImageTooLarge: More chunks than any program writes.
    """
    if len(data) < _HEADER_BYTES:
        raise ImageDecodeError("a truncated WebP: its header is incomplete")
    orientation = _orientation(data) if data[12:16] == b"VP8X" else 1
    return Container(data, _size(data), orientation)


def _size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L" and data[20] == _LOSSLESS:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
        return width & 0x3FFF, height & 0x3FFF
    raise ImageDecodeError("a damaged WebP: its first chunk states no size")


def _orientation(data: bytes) -> int:
    position = _FIRST_CHUNK
    for _ in range(MAX_BLOCKS):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            return orientation_of(data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
        if position >= len(data):
            return 1
    raise refuse_metadata(f"a WebP with more than {MAX_BLOCKS} chunks")
