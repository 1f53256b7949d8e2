"""Resampling of 8-bit RGB images: Pillow's antialiased kernels, and OpenCV's plain ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "TURNS",
    "Axis",
    "Pixels",
    "RgbImage",
    "Turn",
    "as_array",
    "resample_antialiased",
    "resample_plain",
    "turn_upright",
]

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

_WORTH_PICKING = 1 << 20
"""Pixels from which on picking the neighbours is faster than unpacking the whole image."""

_AFFINE = Image.Transform.AFFINE
_FIXED_POINT_BITS = 11
_ONE = 1 << _FIXED_POINT_BITS
_CUBIC_A = np.float32(-0.75)
_Weights = NDArray[np.int32]
_Indices = NDArray[np.intp]


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
    """What makes a stored image upright: swap the sides, then flip."""

    swap: bool
    flip_y: bool
    flip_x: bool


TURNS = {
    1: Turn(swap=False, flip_y=False, flip_x=False),
    2: Turn(swap=False, flip_y=False, flip_x=True),
    3: Turn(swap=False, flip_y=True, flip_x=True),
    4: Turn(swap=False, flip_y=True, flip_x=False),
    5: Turn(swap=True, flip_y=False, flip_x=False),
    6: Turn(swap=True, flip_y=False, flip_x=True),
    7: Turn(swap=True, flip_y=True, flip_x=True),
    8: Turn(swap=True, flip_y=True, flip_x=False),
}
"""By EXIF's orientation (CIPA DC-008, tag 0x0112)."""


def turn_upright(pixels: RgbImage, orientation: int) -> RgbImage:
    """Return a view of a stored image the right way up.

    Args:
        pixels: uint8 `(height, width, 3)`.
        orientation: EXIF's, 1 to 8.
    """
    turn = TURNS[orientation]
    swapped = pixels.transpose(1, 0, 2) if turn.swap else pixels
    return swapped[:: -1 if turn.flip_y else 1, :: -1 if turn.flip_x else 1]


def as_array(pixels: Pixels) -> RgbImage:
    """Return pixels, in mode RGB or L where they are an image, as uint8 `(height, width, 3)`."""
    return np.asarray(pixels.convert("RGB")) if isinstance(pixels, Image.Image) else pixels


def resample_antialiased(
    pixels: Pixels,
    x: Axis,
    y: Axis,
    interpolation: Interpolation,
    *,
    rows_first: bool = False,
) -> RgbImage:
    """Resample with a kernel that widens with the scale, as Pillow's `resize` does.

    The result is within one level of what resizing all of the image and then cutting gives.

    Args:
        pixels: The image, in mode RGB or L or as uint8 `(height, width, 3)`.
        x: Along its width.
        y: Along its height.
        interpolation: The kernel.
        rows_first: Scale the height before the width, for an image that lies on its side:
            values are rounded between the passes, so their order shows.

    Returns:
        uint8 `(y.kept, x.kept, 3)`.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    kernel = _KERNELS[interpolation]
    large = x.resized * y.resized > _WORTH_CUTTING * x.kept * y.kept
    if not (rows_first or large):
        whole = as_array(image.resize((x.resized, y.resized), kernel))
        return whole[y.first : y.first + y.kept, x.first : x.first + x.kept]
    for axis in (y, x) if rows_first else (x, y):
        begin, end = axis.span
        across = axis is x
        image = image.resize(
            (x.kept, image.height) if across else (image.width, y.kept),
            kernel,
            box=(begin, 0, end, image.height) if across else (0, begin, image.width, end),
        )
    return as_array(image)


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
    neighbours = _neighbours(pixels, (y, x), (rows, columns))
    # Long rows of values and not pixels of three: numpy's inner loops run over the last axis.
    values = neighbours.reshape(*neighbours.shape[:3], -1)
    taps = np.repeat(column_weights, neighbours.shape[-1], axis=1)
    across = values[:, 0] * taps[0]
    for place in range(1, len(taps)):
        across += values[:, place] * taps[place]
    if interpolation == "bilinear":
        across >>= 4
    total = np.zeros(across.shape[1:], np.int32)
    for line, weight in zip(across, row_weights[:, :, None], strict=True):
        weighed = line * weight
        total += weighed >> 16 if interpolation == "bilinear" else weighed
    if interpolation == "bilinear":
        mixed = (total + 2) >> 2
    else:
        half = 1 << (2 * _FIXED_POINT_BITS - 1)
        mixed = np.clip((total + half) >> (2 * _FIXED_POINT_BITS), 0, 255)
    return np.asarray(mixed, np.uint8).reshape(neighbours.shape[2:])


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


def _neighbours(
    pixels: Pixels, axes: tuple[Axis, Axis], indices: tuple[_Indices, _Indices]
) -> RgbImage:
    """Return the pixels that are weighed, `(row taps, column taps, height, width, 3)`.

    Args:
        pixels: The stored image.
        axes: Along its height, and its width.
        indices: Of the rows and of the columns, as `_taps` gives them.
    """
    if isinstance(pixels, Image.Image) and pixels.width * pixels.height > _WORTH_PICKING:
        (down, tops), (along, lefts) = map(_progression, axes, indices)
        if len(tops) and len(lefts):
            size = (axes[1].kept, axes[0].kept)
            places = [[(along, 0, left, 0, down, top) for left in lefts] for top in tops]
            picked = [[pixels.transform(size, _AFFINE, place) for place in row] for row in places]
            return np.asarray([[as_array(image) for image in row] for row in picked])
    rows, columns = indices
    return as_array(pixels)[rows[:, None, :, None], columns[None, :, None, :]]


def _progression(axis: Axis, indices: _Indices) -> tuple[float, NDArray[np.float64]]:
    """Return step and starts of which Pillow's nearest neighbours are the indices.

    That spares unpacking a large image. There are no starts where they are not the same, as at an
    edge that has to be repeated.
    """
    step = axis.source / axis.resized
    reach = len(indices) // 2
    # Places between pixels come in multiples of 1 / (2 * resized): none is near a whole number.
    centre = axis.first * step - 0.5 + 1 / (4 * axis.resized)
    starts = centre + np.arange(1 - reach, 1 + reach, dtype=np.float64)
    found = np.floor(step * (np.arange(axis.kept) + 0.5) + starts[:, None])
    return step, starts if np.array_equal(found, indices) else starts[:0]
