"""Walk over a PNG's chunks (PNG specification, third edition, section 5).

Only the chunks that decide pixels go to the decoder: text and colour profiles are compressed,
and expanding them is what a text bomb waits for.
"""

from __future__ import annotations

import zlib

from ...errors import ImageDecodeError
from .container import MAX_BLOCKS, Container, refuse_metadata
from .ifd import orientation_of

__all__ = ["walk_png"]

_SIGNATURE_BYTES = 8
_HEADER_BYTES = 33
_FOR_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MAX_TEXT_BYTES = 4 * 1024 * 1024


def walk_png(data: bytes) -> Container:
    """Find a PNG's size and orientation.

    Raises:
        ImageDecodeError: The header chunk is missing.
        ImageTooLarge: Text that expands beyond 4 MiB, or more chunks than any program writes.
    """
    kept, position, orientation, text = [data[:_SIGNATURE_BYTES]], _SIGNATURE_BYTES, 1, 0
    if data[12:16] != b"IHDR" or len(data) < _HEADER_BYTES:
        raise ImageDecodeError("a damaged PNG: its header chunk is missing")
    for _ in range(MAX_BLOCKS):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if name in _FOR_PIXELS:
            kept.append(data[position:end])
        elif name in (b"zTXt", b"iTXt", b"iCCP"):
            text += _expanded_size(data[position + 8 : end - 4], _MAX_TEXT_BYTES - text)
        elif name == b"eXIf":
            orientation = orientation_of(data[position + 8 : end - 4])
        position = end
        if name == b"IEND" or position >= len(data):
            size = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
            return Container(b"".join(kept), size, orientation)
    raise refuse_metadata(f"a PNG with more than {MAX_BLOCKS} chunks")


def _expanded_size(chunk: bytes, limit: int) -> int:
    start = chunk.find(b"\x78")
    if start < 0:
        return 0
    try:
        size = len(zlib.decompressobj().decompress(chunk[start:], limit + 1))
    except zlib.error:
        return 0
    if size > limit:
        raise refuse_metadata(f"a PNG whose text expands to more than {_MAX_TEXT_BYTES} bytes")
    return size
