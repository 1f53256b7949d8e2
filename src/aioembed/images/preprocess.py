"""From decoded pixels to a program's input: resized, cropped or letterboxed, and normalised."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models import Preprocessing
from .decode import Stored, from_array
from .resample import (
    TURNS,
    Axis,
    RgbImage,
    Turn,
    as_array,
    resample_antialiased,
    resample_plain,
    turn_upright,
)

__all__ = ["preprocess", "program_input"]

_CHANNELS = 3


def preprocess(rgb: RgbImage, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn pixels into a program's input.

    Args:
        rgb: uint8 `(height, width, 3)`, upright; grey `(height, width)` and `(height, width, 1)`
            and RGBA, whose alpha is dropped, will do as well.
        preprocessing: What the program wants.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.

    Raises:
        InvalidUserInput: The array has another shape or dtype.
    """
    return program_input(from_array(rgb), preprocessing)


def program_input(stored: Stored, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn decoded pixels, in the order they are stored in, into a program's upright input.

    Args:
        stored: The pixels.
        preprocessing: What the program wants.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.
    """
    x, y, turn, top, left = _Geometry.of(stored.size, stored.orientation, preprocessing)
    pixels = stored.pixels
    kernel = preprocessing.interpolation
    if x.is_identity and y.is_identity:
        small = as_array(pixels)
    elif preprocessing.antialias:
        small = resample_antialiased(pixels, x, y, kernel, rows_first=turn.swap)
    else:
        small = resample_plain(pixels, x, y, kernel)
    upright = turn_upright(small, stored.orientation)
    return _lay_out(_pad(upright, top, left, preprocessing), preprocessing)


class _Geometry(NamedTuple):
    """The way from a stored image to the program's.

    Attributes:
        x: Along the stored image's width.
        y: Along its height.
        turn: What makes the result upright.
        top: Rows of padding above the upright result.
        left: Columns of padding before it.
    """

    x: Axis
    y: Axis
    turn: Turn
    top: int
    left: int

    @classmethod
    def of(cls, size: tuple[int, int], orientation: int, to: Preprocessing) -> _Geometry:
        """Plan the way of an image.

        Args:
            size: Width and height of the stored image, in pixels.
            orientation: EXIF's, 1 to 8.
            to: What is wanted.
        """
        turn = TURNS[orientation]
        width, height = (size[1], size[0]) if turn.swap else size
        resized_width, resized_height = _resized(width, height, to)
        x, left = _centred(width, resized_width, to.width)
        y, top = _centred(height, resized_height, to.height)
        if to.resize == "letterbox":  # smaller half first, as letterboxing detectors have it
            left, top = (to.width - resized_width) // 2, (to.height - resized_height) // 2
        x, y = (x.flipped if turn.flip_x else x), (y.flipped if turn.flip_y else y)
        if turn.swap:
            x, y = y, x
        return cls(x, y, turn, top, left)


def _resized(width: int, height: int, to: Preprocessing) -> tuple[int, int]:
    if to.resize == "stretch":
        return to.width, to.height
    if to.resize == "letterbox":
        scale = min(to.width / width, to.height / height)
        return max(1, round(width * scale)), max(1, round(height * scale))
    shortest = to.shortest_edge or min(to.width, to.height)
    # The long side is cut off, not rounded, as the reference CLIP processors do.
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _centred(source: int, resized: int, wanted: int) -> tuple[Axis, int]:
    first = (resized - wanted) // 2
    return Axis(source, resized, max(first, 0), min(resized, wanted)), max(-first, 0)


def _pad(pixels: RgbImage, top: int, left: int, to: Preprocessing) -> RgbImage:
    """Return pixels on a ground of the program's size, as they are where they fill it."""
    if pixels.shape[:2] == (to.height, to.width):
        return pixels
    padded = np.empty((to.height, to.width, _CHANNELS), np.uint8)
    padded[:] = to.pad_value
    padded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return padded


def _lay_out(pixels: RgbImage, to: Preprocessing) -> NDArray[np.float32]:
    """Scale, normalise and order pixels for a program.

    Args:
        pixels: uint8 `(height, width, 3)`, upright.
        to: Scale, mean, standard deviation and layout.

    Returns:
        C-contiguous float32 of the shape `to.input_shape`.
    """
    out = np.empty(to.input_shape, np.float32)
    source, place, axis = _in_step(pixels, out, to)
    tables = [_values(to.scale, *of_channel) for of_channel in zip(to.mean, to.std, strict=True)]
    if tables[0] is tables[1] is tables[2]:
        np.take(tables[0], source, out=place, mode="clip")
    else:
        channels = (np.moveaxis(view, axis, 0) for view in (source, place))
        for value_of, values, to_fill in zip(tables, *channels, strict=True):
            np.take(value_of, values, out=to_fill, mode="clip")
    return out


def _in_step(
    pixels: RgbImage, out: NDArray[np.float32], to: Preprocessing
) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
    """Return pixels and program input with their axes in the program's order, and the channels'."""
    if to.layout == "nhwc":
        return pixels, out[0], -1
    if to.patch_size is None:
        return pixels.transpose(2, 0, 1), out[0], 0
    side = to.patch_size
    rows, columns = to.height // side, to.width // side
    grid = pixels.reshape(rows, side, columns, side, _CHANNELS)
    return grid.transpose(0, 2, 1, 3, 4), out.reshape(rows, columns, side, side, _CHANNELS), -1


@lru_cache(maxsize=64)
def _values(scale: float, mean: float, std: float) -> NDArray[np.float32]:
    """Return the program's value for each of the 256 levels of a channel."""
    values = ((np.arange(256) * scale - mean) / std).astype(np.float32)
    values.flags.writeable = False
    return values
