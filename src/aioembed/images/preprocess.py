"""From 8-bit RGB pixels to a program's input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidUserInput
from ..models import Preprocessing
from .decode import Stored
from .geometry import Geometry
from .layout import lay_out, pad, turn_upright
from .resample import RgbImage, as_array, resample_antialiased, resample_plain

__all__ = ["check_array", "preprocess", "program_input", "smallest_enough"]

_CHANNELS = 3
_GAP = 18
"""A JPEG is decoded at no less than this many pixels per output pixel, along either side.

Below 16, some values of smooth pictures are further than 1/255 from those of a full decode:
`benchmarks/parity.py`.
"""


def check_array(array: NDArray[np.uint8]) -> None:
    """Refuse an array that is no 8-bit RGB image.

    Raises:
        InvalidUserInput: It has another shape or dtype.
    """
    if array.shape[2:] != (_CHANNELS,) or array.dtype != np.uint8 or 0 in array.shape:
        raise InvalidUserInput(
            f"an array of dtype {array.dtype} and shape {array.shape}: images are uint8 (height, "
            f"width, {_CHANNELS}), in the order red, green, blue"
        )


def preprocess(rgb: RgbImage, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn pixels into a program's input.

    Args:
        rgb: uint8 `(height, width, 3)`, upright.
        preprocessing: What the program wants.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.

    Raises:
        InvalidUserInput: The array has another shape or dtype.
    """
    check_array(rgb)
    return program_input(Stored(rgb, (rgb.shape[1], rgb.shape[0])), preprocessing)


def program_input(stored: Stored, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn decoded pixels, in the order they are stored in, into a program's upright input.

    Args:
        stored: The pixels; shrunk by the decoder only where the preprocessing antialiases.
        preprocessing: What the program wants.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.
    """
    x, y, turn, top, left = Geometry.of(stored.size, stored.orientation, preprocessing)
    pixels = stored.pixels
    kernel = preprocessing.interpolation
    if x.is_identity and y.is_identity:
        small = as_array(pixels)
    elif preprocessing.antialias:
        small = resample_antialiased(pixels, x, y, kernel, stored.shrunk, rows_first=turn.swap)
    else:
        small = resample_plain(pixels, x, y, kernel)
    return lay_out(pad(turn_upright(small, turn), top, left, preprocessing), preprocessing)


def smallest_enough(
    preprocessing: Preprocessing,
) -> Callable[[tuple[int, int], int], tuple[int, int] | None]:
    """Return the function that tells how small an image may be decoded.

    It takes width, height and orientation of the stored image, and returns the width and height
    that are enough; None where every pixel counts.
    """

    def enough(size: tuple[int, int], orientation: int) -> tuple[int, int] | None:
        if not preprocessing.antialias:
            return None
        geometry = Geometry.of(size, orientation, preprocessing)
        return _GAP * geometry.x.resized, _GAP * geometry.y.resized

    return enough
