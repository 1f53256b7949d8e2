"""From encoded bytes to 8-bit RGB pixels, within a policy's limits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from PIL import Image, ImageFile

from ..errors import AioembedError, ImageDecodeError, ImageTooLarge
from .color import to_rgb
from .containers import orientation_of, walk
from .geometry import Turn
from .layout import turn_upright
from .policy import ImageFormat, SourcePolicy
from .resample import Pixels, RgbImage, as_array
from .sniff import image_format

__all__ = ["EncodedImage", "Stored", "check_bytes", "check_size", "decode", "open_encoded"]

# The decoders' own classes, because Pillow's `Image.open` checks sizes against a setting that
# belongs to the whole process. Each is imported with the first image of its format: together they
# take 4 MB.
_DECODERS: dict[ImageFormat, str] = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "AVIF": "Avif",
}

_FINE_STEPS = 9.5
"""Mean step of a quantisation table up to which a decode at 1/2 is within 1/255: 9.2 is what
libjpeg calls quality 92. At 90, 11.5, lines of one pixel came out 2/255 off, and so they did with
finer steps at 1/4."""


class Stored(NamedTuple):
    """Decoded pixels in the order they are stored in.

    Attributes:
        pixels: In mode RGB or L, or uint8 `(height, width, 3)`.
        size: Width and height of the whole image in pixels, before any shrinking.
        orientation: EXIF's, 1 to 8, still to be applied.
        shrunk: Factor by which the decoder has shrunk both sides.
    """

    pixels: Pixels
    size: tuple[int, int]
    orientation: int = 1
    shrunk: int = 1


class EncodedImage(NamedTuple):
    """An encoded image whose header has been read and found within the limits."""

    image: ImageFile.ImageFile
    format: ImageFormat
    orientation: int

    def load(self, at_least: Callable[[tuple[int, int], int], tuple[int, int] | None]) -> Stored:
        """Decode the pixels.

        Args:
            at_least: Given size and orientation, returns the smallest width and height that are
                enough, so that a finely quantised greyscale JPEG may be decoded at 1/2; None where
                only all of them are.

        Raises:
            ImageDecodeError: They are damaged or cut off.
            UnsupportedImageFormat: They have no 8-bit meaning.
        """
        size = self.image.size
        shrunk = 1
        with _as_decode_error(self.format):
            enough = at_least(size, self.orientation)
            if enough is not None and _scales_cleanly(self.image):
                shrunk = _shrink(self.image, enough)
            self.image.load()
            size = size if shrunk > 1 else self.image.size
            grey = self.image.mode == "L"  # three times the work as RGB
            pixels = self.image if grey else to_rgb(self.image)
            return Stored(pixels, size, self.orientation, shrunk)


def check_bytes(count: int, policy: SourcePolicy) -> None:
    """Refuse an image of too many encoded bytes.

    Raises:
        ImageTooLarge: `count` is beyond the policy's `max_bytes`.
    """
    if count > policy.max_bytes:
        raise ImageTooLarge(
            f"the image has more than {policy.max_bytes} bytes, the source policy's max_bytes: "
            "allow more with SourcePolicy.allow(max_bytes=...)"
        )


def check_size(size: tuple[int, int], policy: SourcePolicy) -> None:
    """Refuse an image of too many pixels, or none.

    Args:
        size: Width and height in pixels.
        policy: With the limits.

    Raises:
        ImageTooLarge: Beyond the policy's `max_pixels` or `max_dimension`.
        ImageDecodeError: A side has no pixels.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError(f"the image has {width} x {height} pixels: there is nothing in it")
    if max(size) > policy.max_dimension:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, more than the source policy's "
            f"max_dimension of {policy.max_dimension}: allow more with "
            "SourcePolicy.allow(max_dimension=...)"
        )
    if width * height > policy.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, more than the source policy's max_pixels "
            f"of {policy.max_pixels}: allow more with SourcePolicy.allow(max_pixels=...)"
        )


def open_encoded(data: bytes, policy: SourcePolicy) -> EncodedImage:
    """Read an encoded image's header and check it; no pixel is decoded.

    Args:
        data: The encoded image.
        policy: Formats and limits.

    Raises:
        ImageTooLarge: More bytes, pixels or metadata than the limits.
        UnsupportedImageFormat: A format that is not on the policy's list.
        ImageDecodeError: No image, or a damaged one.
    """
    check_bytes(len(data), policy)
    name = image_format(data, policy)
    with _as_decode_error(name):
        container = walk(data, name)
    if container.size is not None:
        check_size(container.size, policy)
    with _as_decode_error(name):
        image = _decoder(name)(io.BytesIO(container.payload))
        image.decodermaxblock = len(container.payload)  # in one piece: it is in memory already
    check_size(image.size, policy)
    if container.size is not None and max(image.size) > max(container.size):
        raise ImageDecodeError(f"a damaged {name}: its header states two sizes")
    orientation = container.orientation
    if name == "AVIF":
        orientation = orientation_of(image.info.get("exif", b""))
    return EncodedImage(image, name, orientation)


def decode(data: bytes, policy: SourcePolicy) -> RgbImage:
    """Decode an image, EXIF's orientation applied, the first frame of an animated one.

    Args:
        data: The encoded image.
        policy: Formats and limits.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ImageTooLarge: More bytes, pixels or metadata than the limits.
        UnsupportedImageFormat: A format that is not on the policy's list, or pixels without an
            8-bit meaning.
        ImageDecodeError: No image, or a damaged one.
    """
    stored = open_encoded(data, policy).load(lambda _size, _orientation: None)
    return turn_upright(as_array(stored.pixels), Turn.of(stored.orientation))


def _decoder(name: ImageFormat) -> type[ImageFile.ImageFile]:
    plugin = import_module(f"PIL.{_DECODERS[name]}ImagePlugin")
    decoder: type[ImageFile.ImageFile] = getattr(plugin, f"{_DECODERS[name]}ImageFile")
    return decoder


def _scales_cleanly(image: ImageFile.ImageFile) -> bool:
    """Tell whether the decoder may scale.

    In a full decode, single pixels that quantisation has led out of 0..255 are clipped, which
    those of a decode at 1/2 are not. It shows at strokes of black or white, the more the coarser
    the steps are, and at strong colours with any steps but the finest.
    """
    if image.format != "JPEG" or getattr(image, "layers", None) != 1:
        return False
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    return bool(tables) and max(sum(steps) / len(steps) for steps in tables.values()) <= _FINE_STEPS


def _shrink(image: ImageFile.ImageFile, enough: tuple[int, int]) -> int:
    width, height = image.size
    drafted = image.draft(None, (max(enough[0], width // 2), max(enough[1], height // 2)))
    if drafted is None:
        return 1
    _mode, (_left, _upper, right, _lower) = drafted
    return round(width / right)


@contextmanager
def _as_decode_error(name: ImageFormat) -> Iterator[None]:
    try:
        yield
    except AioembedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLarge(
            f"a {name} image that Pillow refuses: its own limit, PIL.Image.MAX_IMAGE_PIXELS, "
            f"holds for this format too ({exc})"
        ) from exc
    except MemoryError as exc:
        raise ImageTooLarge(f"there is not enough memory to decode this {name} image") from exc
    except Exception as exc:  # Pillow's decoders raise whatever the damage leads them to.
        raise ImageDecodeError(f"a damaged or truncated {name} image: {exc}") from exc
