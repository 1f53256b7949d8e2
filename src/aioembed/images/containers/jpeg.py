"""Walk over a JPEG's segments (ITU-T T.81, annex B).

Application segments and comments stay behind, but for the two that say how colours are coded
(JFIF and Adobe): the decoder would otherwise parse EXIF with no bound on memory.
"""

from __future__ import annotations

from ...errors import ImageDecodeError
from .container import MAX_BLOCKS, Container, refuse_metadata
from .ifd import orientation_of

__all__ = ["walk_jpeg"]

_START_OF_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC9))
"""Frames that end with their first scan if that has all of their components."""
_FRAME_BYTES = 5
_EXIF = 0xE1
_COMMENT = 0xFE
_APPLICATION = range(0xE0, 0xF0)
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_MAX_SCANS = 256


def walk_jpeg(data: bytes) -> Container:
    """Find a JPEG's size and orientation.

    Raises:
        ImageDecodeError: The segments are damaged, or end before the first scan.
        ImageTooLarge: More segments or scans than any camera or program writes.
    """
    kept, position, orientation = [data[:2]], 2, 1
    size, one_scan = None, b""
    for _ in range(MAX_BLOCKS):
        marker, position = _next_marker(data, position)
        if marker in _STANDALONE:
            continue
        body = data[position + 2 : position + int.from_bytes(data[position : position + 2], "big")]
        if marker in _FRAMES and len(body) >= _FRAME_BYTES:
            size = (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
            one_scan = body[5:6] if marker in _SEQUENTIAL else b""
        if marker == _EXIF and body.startswith(b"Exif\0\0") and orientation == 1:
            orientation = orientation_of(body)
        if marker == _START_OF_SCAN:
            several = body[:1] != one_scan
            return _finished(kept, data, position - 2, size, orientation, several=several)
        if _colour_matters(marker, body):
            kept.append(data[position - 2 : position + 2 + len(body)])
        position += 2 + len(body)
    raise refuse_metadata(f"a JPEG with more than {MAX_BLOCKS} segments before its first scan")


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    while data[position : position + 1] == b"\0":
        position += 1
    if data[position : position + 1] != b"\xff":
        raise ImageDecodeError(f"a damaged JPEG: no marker at byte {position}")
    end = position
    while data[end : end + 1] == b"\xff":
        end += 1
    if end >= len(data):
        raise ImageDecodeError("a truncated JPEG: it ends before its first scan")
    return data[end], end + 1


def _colour_matters(marker: int, body: bytes) -> bool:
    if marker in _APPLICATION:
        return body.startswith((b"JFIF\0", b"Adobe"))
    return marker != _COMMENT


def _finished(
    kept: list[bytes],
    data: bytes,
    scan: int,
    size: tuple[int, int] | None,
    orientation: int,
    *,
    several: bool,
) -> Container:
    if size is None:
        raise ImageDecodeError("a damaged JPEG: no frame header before its first scan")
    if several and data.count(b"\xff\xda", scan) > _MAX_SCANS:
        raise refuse_metadata(f"a JPEG with more than {_MAX_SCANS} scans")
    is_whole = sum(map(len, kept)) == scan  # as without EXIF: megabytes need not be copied
    payload = data if is_whole else b"".join((*kept, memoryview(data)[scan:]))
    return Container(payload, size, orientation)
