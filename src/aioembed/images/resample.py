"""Resampling of 8-bit RGB images: Pillow's antialiased kernels, and OpenCV's plain ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .geometry import Axis

__all__ = ["Pixels", "RgbImage", "resample_antialiased", "resample_plain"]

RgbImage = NDArray[np.uint8]
"""Rows, columns, and the channels red, green, blue: uint8 `(height, width, 3)`."""

Pixels = Image.Image | RgbImage
Interpolation = Literal["bilinear", "bicubic"]

_KERNELS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WORTH_CUTTING = 4
"""How many times larger than what is kept of it a scaled image must be to be cut beforehand."""

_FIXED_POINT_BITS = 11
_ONE = 1 << _FIXED_POINT_BITS
_CUBIC_A = np.float32(-0.75)
_Weights = NDArray[np.int32]
_Indices = NDArray[np.intp]


def resample_antialiased(
    pixels: Pixels, x: Axis, y: Axis, interpolation: Interpolation, shrunk: int = 1
) -> RgbImage:
    """Resample with a kernel that widens with the scale, as Pillow's `resize` does.

    An image that the decoder has not shrunk gives exactly what resizing all of it and then
    cutting gives.

    Args:
        pixels: The image, in mode RGB or as uint8 `(height, width, 3)`.
        x: Along its width.
        y: Along its height.
        interpolation: The kernel.
        shrunk: Factor by which the decoder has shrunk both sides already.

    Returns:
        uint8 `(y.kept, x.kept, 3)`.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    kernel = _KERNELS[interpolation]
    if shrunk == 1 and x.resized * y.resized <= _WORTH_CUTTING * x.kept * y.kept:
        whole = np.asarray(image.resize((x.resized, y.resized), kernel))
        return whole[y.first : y.first + y.kept, x.first : x.first + x.kept]
    # Two calls, because Pillow chooses the order of its passes by the box, and values beyond
    # 0..255 are clipped between them.
    (left, right), (upper, lower) = x.span, y.span
    across_box = (left / shrunk, 0, right / shrunk, image.height)
    across = image.resize((x.kept, image.height), kernel, box=across_box)
    box = (0, upper / shrunk, x.kept, lower / shrunk)
    return np.asarray(across.resize((x.kept, y.kept), kernel, box=box))


def resample_plain(pixels: Pixels, x: Axis, y: Axis, interpolation: Interpolation) -> RgbImage:
    """Resample with a kernel of fixed width, in the fixed-point arithmetic of OpenCV.

    Only the neighbours of the wanted points are read, so the cost hardly depends on the image's
    size. Source: OpenCV, `modules/imgproc/src/resize.cpp`, `INTER_LINEAR` and `INTER_CUBIC` on
    8-bit images.

    Args:
        pixels: The stored image, in mode RGB or as uint8 `(height, width, 3)`.
        x: Along its width.
        y: Along its height.
        interpolation: The kernel.

    Returns:
        uint8 `(y.kept, x.kept, 3)`.
    """
    columns, column_weights = _taps(x, interpolation)
    rows, row_weights = _taps(y, interpolation)
    used, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)
    lines = _rows(pixels, used)
    across = np.zeros((len(used), x.kept, 3), np.int32)
    for column, weight in zip(columns, column_weights, strict=True):
        across += lines[:, column] * weight[:, None]
    taps = [(across[places[tap]], row_weights[tap][:, None, None]) for tap in range(len(rows))]
    total = np.zeros((y.kept, x.kept, 3), np.int32)
    for line, weight in taps:
        total += ((line >> 4) * weight) >> 16 if interpolation == "bilinear" else line * weight
    if interpolation == "bilinear":
        return np.asarray((total + 2) >> 2, np.uint8)
    half = 1 << (2 * _FIXED_POINT_BITS - 1)
    return np.asarray(np.clip((total + half) >> (2 * _FIXED_POINT_BITS), 0, 255), np.uint8)


def _taps(axis: Axis, interpolation: Interpolation) -> tuple[_Indices, _Weights]:
    """Return source indices and weights, `(taps, kept)`, of every wanted pixel."""
    centres = (axis.first + np.arange(axis.kept) + 0.5) * (axis.source / axis.resized) - 0.5
    positions = centres.astype(np.float32)
    below = np.floor(positions)
    part = positions - below
    weights = (_linear if interpolation == "bilinear" else _cubic)(part)
    reach = len(weights) // 2
    indices = below.astype(np.intp) + np.arange(1 - reach, 1 + reach)[:, None]
    fixed = np.rint(weights * np.float32(_ONE)).astype(np.int32)
    return np.clip(indices, 0, axis.source - 1), fixed


def _linear(part: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack((1 - part, part))


def _cubic(part: NDArray[np.float32]) -> NDArray[np.float32]:
    a = _CUBIC_A

    def near(distance: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((a + 2) * distance - (a + 3)) * distance * distance + 1

    outer = part + 1
    first = ((a * outer - 5 * a) * outer + 8 * a) * outer - 4 * a
    second, third = near(part), near(1 - part)
    return np.stack((first, second, third, 1 - first - second - third))


def _rows(pixels: Pixels, used: _Indices) -> RgbImage:
    """Return some rows of an image; of a large one, without unpacking the others."""
    if not isinstance(pixels, Image.Image):
        return pixels[used]
    width, height = pixels.size
    if 2 * len(used) > height:
        return np.asarray(pixels)[used]
    lines = np.empty((len(used), width, 3), np.uint8)
    start = 0
    for run in np.split(used, np.flatnonzero(np.diff(used) > 1) + 1):
        strip = pixels.crop((0, int(run[0]), width, int(run[-1]) + 1))
        lines[start : start + len(run)] = np.frombuffer(strip.tobytes(), np.uint8).reshape(
            len(run), width, 3
        )
        start += len(run)
    return lines
