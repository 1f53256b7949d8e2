"""TIFF's image file directory, which EXIF shares: read within bounds, nothing copied.

Source: TIFF 6.0, section 2, and the BigTIFF design (43 instead of 42, 8-byte counts and offsets).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["Entry", "first_ifd", "orientation_of"]

_BIG_TIFF = 43
_ORIENTATION = 0x0112
_ORIENTATIONS = range(1, 9)
_MAX_ENTRIES = 4096
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_BYTES_OF_BIG_TYPE = {13: 4, 16: 8, 17: 8, 18: 8}


class Entry(NamedTuple):
    """One tag's value: how many bytes it takes in the file, how many items it has, and the first.

    `first` is None where the value is no integer or lies outside the file.
    """

    size: int
    items: int
    first: int | None


def first_ifd(data: bytes) -> dict[int, Entry]:
    """Return the tags of a TIFF file's first directory; empty where it has none that is whole."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return {}
    try:
        return _read(data, order)
    except (struct.error, OverflowError):  # an offset that no file of this length has
        return {}


def _read(data: bytes, order: str) -> dict[int, Entry]:
    big = struct.unpack_from(order + "H", data, 2)[0] == _BIG_TIFF
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
    position = offset + (8 if big else 2)
    entries = {}
    for _ in range(min(count, _MAX_ENTRIES + 1)):
        tag, kind, items = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, position)
        value_at = position + (12 if big else 8)
        position += 20 if big else 12
        width = _BYTES_OF_TYPE.get(kind) or _BYTES_OF_BIG_TYPE.get(kind, 0)
        size = width * items
        if size > (8 if big else 4):
            value_at = struct.unpack_from(order + ("Q" if big else "I"), data, value_at)[0]
        entries[tag] = Entry(size, items, _first_integer(data, order, value_at, kind))
    return entries


def _first_integer(data: bytes, order: str, position: int, kind: int) -> int | None:
    code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if code is None or position + struct.calcsize(code) > len(data):
        return None
    return int(struct.unpack_from(order + code, data, position)[0])


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states; 1 where it states none."""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    entry = first_ifd(exif[start:] if start else exif).get(_ORIENTATION)
    if entry is None or entry.first is None or entry.first not in _ORIENTATIONS:
        return 1
    return entry.first
