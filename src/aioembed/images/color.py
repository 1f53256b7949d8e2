"""One conversion to 8-bit RGB for every kind of pixel.

| Pixels | Conversion |
|---|---|
| RGB | as they are |
| bilevel, greyscale | the grey value in all three channels |
| palette | the palette's colours |
| alpha, of any kind | dropped, without blending; premultiplied colours are divided by it first |
| 16 bits per channel | the upper 8 bits |
| CMYK, YCCK | `(255 - ink) * (255 - black) / 255` |
| YCbCr, HSV | the usual formulas of Pillow |
| ICC profile | ignored, as the reference CLIP processors and OpenCV do |
| 32-bit integer, floating point, L*a*b* | refused: they have no range that 8 bits could stand for |
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import UnsupportedImageFormat

__all__ = ["to_rgb"]

_CONVERTIBLE = frozenset(("1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGB"))
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, the image itself where it is in it already.

    Args:
        image: In any of Pillow's modes; it is left as it is.

    Raises:
        UnsupportedImageFormat: Its pixels have no 8-bit meaning.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode not in _CONVERTIBLE:
        raise UnsupportedImageFormat(
            f"pixels of mode {image.mode!r} have no 8-bit meaning: convert them to 8-bit RGB first"
        )
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
