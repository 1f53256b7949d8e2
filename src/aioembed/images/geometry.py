"""Where each output pixel comes from: resize, centre crop, padding, orientation. No pixels here."""

from __future__ import annotations

from typing import NamedTuple

from ..models import Preprocessing

__all__ = ["Axis", "Geometry", "Turn"]


class Axis(NamedTuple):
    """One side of the resampling.

    Attributes:
        source: Pixels of the stored image along this side.
        resized: Pixels that the whole side is scaled to.
        first: First of the scaled pixels that is kept.
        kept: How many of them are kept.
    """

    source: int
    resized: int
    first: int
    kept: int

    @property
    def is_identity(self) -> bool:
        """Whether every pixel is kept as it is."""
        return self.source == self.resized == self.kept

    @property
    def flipped(self) -> Axis:
        """The same pixels counted from the other end."""
        return self._replace(first=self.resized - self.first - self.kept)

    @property
    def span(self) -> tuple[float, float]:
        """Where the kept pixels begin and end in the source, in pixels."""
        begin = self.first * self.source / self.resized
        end = (self.first + self.kept) * self.source / self.resized
        return begin, min(end, float(self.source))


class Turn(NamedTuple):
    """EXIF's orientation as what makes the stored image upright: swap the sides, then flip."""

    swap: bool
    flip_y: bool
    flip_x: bool

    @classmethod
    def of(cls, orientation: int) -> Turn:
        """Return the turn for EXIF's orientation, 1 to 8 (CIPA DC-008, tag 0x0112)."""
        return _TURNS[orientation]


_TURNS = {
    1: Turn(swap=False, flip_y=False, flip_x=False),
    2: Turn(swap=False, flip_y=False, flip_x=True),
    3: Turn(swap=False, flip_y=True, flip_x=True),
    4: Turn(swap=False, flip_y=True, flip_x=False),
    5: Turn(swap=True, flip_y=False, flip_x=False),
    6: Turn(swap=True, flip_y=False, flip_x=True),
    7: Turn(swap=True, flip_y=True, flip_x=True),
    8: Turn(swap=True, flip_y=True, flip_x=False),
}


class Geometry(NamedTuple):
    """The way from a stored image to the program's.

    Attributes:
        x: Along the stored image's width.
        y: Along its height.
        turn: What makes the result upright.
        top: Rows of zeros above the upright result.
        left: Columns of zeros before it.
    """

    x: Axis
    y: Axis
    turn: Turn
    top: int
    left: int

    @classmethod
    def of(cls, size: tuple[int, int], orientation: int, to: Preprocessing) -> Geometry:
        """Plan the way of an image.

        Args:
            size: Width and height of the stored image, in pixels.
            orientation: EXIF's, 1 to 8.
            to: What is wanted.
        """
        turn = Turn.of(orientation)
        width, height = (size[1], size[0]) if turn.swap else size
        resized_width, resized_height = _resized(width, height, to)
        x, left = _centred(width, resized_width, to.width)
        y, top = _centred(height, resized_height, to.height)
        x, y = (x.flipped if turn.flip_x else x), (y.flipped if turn.flip_y else y)
        if turn.swap:
            x, y = y, x
        return cls(x, y, turn, top, left)


def _resized(width: int, height: int, to: Preprocessing) -> tuple[int, int]:
    if to.resize == "stretch":
        return to.width, to.height
    shortest = to.shortest_edge or min(to.width, to.height)
    # The long side is cut off, not rounded, as the reference CLIP processors do.
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _centred(source: int, resized: int, wanted: int) -> tuple[Axis, int]:
    first = (resized - wanted) // 2
    return Axis(source, resized, max(first, 0), min(resized, wanted)), max(-first, 0)
