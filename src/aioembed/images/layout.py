"""From upright 8-bit pixels to the program's float32 input, in one pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..models import Preprocessing
from .geometry import Turn
from .resample import RgbImage

__all__ = ["lay_out", "pad", "turn_upright"]

_CHANNELS = 3


def turn_upright(pixels: RgbImage, turn: Turn) -> RgbImage:
    """Return a view of a stored image the right way up."""
    upright = pixels.transpose(1, 0, 2) if turn.swap else pixels
    return upright[:: -1 if turn.flip_y else 1, :: -1 if turn.flip_x else 1]


def pad(pixels: RgbImage, top: int, left: int, to: Preprocessing) -> RgbImage:
    """Return pixels on a ground of zeros of the program's size, itself where they fill it."""
    if pixels.shape[:2] == (to.height, to.width):
        return pixels
    padded = np.zeros((to.height, to.width, _CHANNELS), np.uint8)
    padded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return padded


def lay_out(pixels: RgbImage, to: Preprocessing) -> NDArray[np.float32]:
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
