"""Walk to a GIF's first frame (GIF89a specification).

Comments and application blocks before it stay behind: the decoder gathers comments in time
quadratic in their length.
"""

from __future__ import annotations

from ...errors import ImageDecodeError
from .container import MAX_BLOCKS, Container, refuse_metadata

__all__ = ["walk_gif"]

_HEADER_BYTES = 13
_EXTENSION = b"\x21"
_IMAGE = b"\x2c"
_GRAPHIC_CONTROL = 0xF9
_IMAGE_DESCRIPTOR_BYTES = 10


def walk_gif(data: bytes) -> Container:
    """Find a GIF's size: of the canvas, widened where the first frame goes beyond it.

    Raises:
        ImageDecodeError: There is no frame.
        ImageTooLarge: More blocks before the first frame than any program writes.
    """
    if len(data) < _HEADER_BYTES:
        raise ImageDecodeError("a truncated GIF: its header is incomplete")
    flags = data[10]
    position = start = _HEADER_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    for _ in range(MAX_BLOCKS):
        kind = data[position : position + 1]
        if kind == _IMAGE:
            return Container(data[:start] + control + data[position:], _size(data, position))
        if kind == _EXTENSION:
            end = _skip_blocks(data, position + 2)
            if data[position + 1 : position + 2] == bytes((_GRAPHIC_CONTROL,)):
                control = data[position:end]
            position = end
        elif kind in (b"", b"\x3b"):
            raise ImageDecodeError("a truncated GIF: it has no frame")
        else:
            position += 1
    raise refuse_metadata(f"a GIF with more than {MAX_BLOCKS} blocks before its first frame")


def _skip_blocks(data: bytes, position: int) -> int:
    for _ in range(MAX_BLOCKS):
        length = data[position] if position < len(data) else 0
        position += 1 + length
        if not length:
            return position
    raise refuse_metadata(f"a GIF with a block of more than {MAX_BLOCKS} parts")


def _size(data: bytes, position: int) -> tuple[int, int]:
    if position + _IMAGE_DESCRIPTOR_BYTES > len(data):
        raise ImageDecodeError("a truncated GIF: its first frame is incomplete")

    def number(at: int) -> int:
        return int.from_bytes(data[at : at + 2], "little")

    left, top, width, height = (number(position + 1 + 2 * index) for index in range(4))
    return max(number(6), left + width), max(number(8), top + height)
