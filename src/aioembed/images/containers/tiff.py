"""Look over a TIFF's first directory (TIFF 6.0) before the decoder does.

The decoder copies every tag's value, so a small file with many tags over the same bytes could
fill the memory; and it makes an object for every strip.
"""

from __future__ import annotations

from ...errors import ImageDecodeError
from .container import MAX_BLOCKS, Container, refuse_metadata
from .ifd import first_ifd

__all__ = ["walk_tiff"]

_WIDTH, _HEIGHT = 256, 257
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def walk_tiff(data: bytes) -> Container:
    """Find a TIFF's size, the larger of image and tile. Its orientation is the decoder's work.

    Raises:
        ImageDecodeError: The directory is damaged or states no size.
        ImageTooLarge: Tags that take more bytes than the file has, or too many strips.
    """
    tags = first_ifd(data)
    if sum(entry.size for entry in tags.values()) > 2 * len(data):
        raise refuse_metadata("a TIFF whose tags take more bytes than the file has")
    for tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
        if tag in tags and tags[tag].items > MAX_BLOCKS:
            raise refuse_metadata(f"a TIFF with more than {MAX_BLOCKS} strips or tiles")
    sides = []
    for tag, tile_tag in ((_WIDTH, _TILE_WIDTH), (_HEIGHT, _TILE_HEIGHT)):
        entry, tile = tags.get(tag), tags.get(tile_tag)
        if entry is None or entry.first is None:
            raise ImageDecodeError("a damaged TIFF: its first directory states no size")
        sides.append(max(entry.first, (tile and tile.first) or 0))
    return Container(data, (sides[0], sides[1]))
