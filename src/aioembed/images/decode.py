"""From encoded bytes, arrays and Pillow images to 8-bit RGB pixels, within a policy's limits.

One conversion for every kind of pixel:

| Pixels | Conversion |
|---|---|
| RGB | as they are |
| bilevel, greyscale | the grey value in all three channels |
| palette | the palette's colours |
| alpha, of any kind | dropped, without blending; premultiplied colours are divided by it first |
| 16 bits per channel | the upper 8 bits |
| 32-bit integer, floating point | linear, the smallest value to 0 and the largest to 255 |
| L*a*b* | to sRGB by littleCMS, relative to D50 |
| CMYK, YCCK | `(255 - ink) * (255 - black) / 255` |
| YCbCr, HSV | the usual formulas of Pillow |
| ICC profile | ignored, as the reference CLIP processors and OpenCV do |
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ..errors import (
    AioembedError,
    ImageDecodeError,
    ImageTooLarge,
    InvalidUserInput,
    UnsupportedImageFormat,
)
from .headers import (
    MeteredFile,
    check_compressed_text,
    check_scans,
    image_format,
    orientation_of,
    usable_tiff,
    webp_size,
)
from .policy import ImageFormat, SourcePolicy
from .resample import Pixels, RgbImage, turn_upright

__all__ = [
    "EncodedImage",
    "Stored",
    "check_bytes",
    "check_size",
    "decode",
    "from_array",
    "from_pillow",
    "open_encoded",
    "upright",
]

# The decoders' own classes, because Pillow's `Image.open` checks sizes against a setting that
# belongs to the whole process. Each is imported with the first image of its format: together they
# take 4 MB.
_DECODERS: Mapping[ImageFormat, tuple[str, str]] = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "DIB": ("PIL.BmpImagePlugin", "DibImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pi_heif", "HeifImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "ICO": ("PIL.IcoImagePlugin", "IcoImageFile"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "TGA": ("PIL.TgaImagePlugin", "TgaImageFile"),
    "PCX": ("PIL.PcxImagePlugin", "PcxImageFile"),
    "QOI": ("PIL.QoiImagePlugin", "QoiImageFile"),
}

_READS_OF_PIXELS = 262_144
_CHANNELS = 3
_CONVERTIBLE = frozenset(("1", "L", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGB"))
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_END_OF_JPEG = b"\xff\xd9"
_STRIP_ROWS = 256

_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1}
_BYTES_OF_WEBP = 19.0
_BYTES_OF_DECODER: Mapping[str, float] = {
    "WEBP": 15.0,
    "JPEG2000": 12.0,
    "AVIF": 5.5,
    "HEIF": 5.5,
    "TIFF": 4.0,
    "QOI": 4.0,
}
"""Memory that decoders take besides the pixels, per pixel, as measured."""
_BYTES_OF_CONVERSION = 4


class Stored(NamedTuple):
    """Decoded pixels in the order they are stored in.

    Attributes:
        pixels: In mode RGB or L, or uint8 `(height, width, 3)`.
        orientation: EXIF's, 1 to 8, still to be applied.
    """

    pixels: Pixels
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        return self.pixels.shape[1], self.pixels.shape[0]


class EncodedImage(NamedTuple):
    """An encoded image whose header has been read and found within the limits."""

    image: ImageFile.ImageFile
    format: ImageFormat
    file: MeteredFile
    policy: SourcePolicy

    def load(self) -> Stored:
        """Decode the pixels.

        Raises:
            ImageDecodeError: They are damaged or cut off.
            ImageTooLarge: They are in more pieces than any program writes.
        """
        self.file.refill(_READS_OF_PIXELS)
        with _as_decode_error(self.format):
            try:
                self.image.load()
            except (OSError, SyntaxError, ValueError, IndexError, EOFError) as exc:
                self._take_what_there_is(exc)
            check_size(self.image.size, self.policy)  # that of an icon shows only now
            orientation = orientation_of(self.image)
            grey = self.image.mode == "L"  # three times the work as RGB
            return Stored(self.image if grey else _to_rgb(self.image), orientation)

    def _take_what_there_is(self, error: Exception) -> None:
        image = self.image
        if self.format not in ("JPEG", "PNG"):
            raise error
        if self.policy.truncated == "allow" and image.tile:
            image.im  # noqa: B018  # raises where nothing was decoded
            image.tile = []
        elif "truncated" in str(error):
            raise ImageDecodeError(
                f"a truncated {self.format} image: {error}",
                rule="truncated",
                remedy='SourcePolicy.allow(truncated="allow") takes what there is',
            ) from error
        else:
            raise error


def check_bytes(count: int, policy: SourcePolicy) -> None:
    """Refuse an image of too many encoded bytes.

    Raises:
        ImageTooLarge: `count` is beyond the policy's `max_bytes`.
    """
    if count > policy.max_bytes:
        raise _too_large(
            f"the image has more than {policy.max_bytes} bytes, the source policy's max_bytes",
            "max_bytes",
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
    for rule, count in (("max_dimension", max(size)), ("max_pixels", width * height)):
        limit = getattr(policy, rule)
        if count > limit:
            raise _too_large(
                f"the image has {width} x {height} pixels, more than the source policy's {rule} "
                f"of {limit}",
                rule,
            )


def _too_large(problem: str, rule: str) -> ImageTooLarge:
    remedy = f"allow more with SourcePolicy.allow({rule}=...)"
    return ImageTooLarge(problem, rule=rule, remedy=remedy)


def open_encoded(data: bytes, policy: SourcePolicy) -> EncodedImage:
    """Read an encoded image's header and check it; no pixel is decoded.

    Args:
        data: The encoded image.
        policy: Formats and limits.

    Raises:
        ImageTooLarge: More bytes, pixels, memory or metadata than the limits.
        UnsupportedImageFormat: A format that is not on the policy's list, or not installed.
        ImageDecodeError: Not an image, or a damaged one.
    """
    check_bytes(len(data), policy)
    name = image_format(data, policy)
    decoder = _decoder(name)
    with _as_decode_error(name):
        if name == "WEBP":
            _check_cost(webp_size(data), _BYTES_OF_WEBP, name, policy)
        elif name == "TIFF":
            data = usable_tiff(data)
        elif name == "PNG":
            check_compressed_text(data)
        elif name == "JPEG" and policy.truncated == "allow":
            data += _END_OF_JPEG
        file = MeteredFile(data)
        image = decoder(file)
        image.decodermaxblock = len(data)  # in one piece: it is in memory already
        size = image.size
        if name == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            size = (max(size[0], _side(tags.get(322))), max(size[1], _side(tags.get(323))))
        elif name == "JPEG":
            is_progressive = "progressive" in image.info
            check_scans(data, file.tell(), 0 if is_progressive else getattr(image, "layers", 0))
        _check_cost(size, _bytes_per_pixel(image, name), name, policy)
    return EncodedImage(image, name, file, policy)


def decode(data: bytes, policy: SourcePolicy) -> RgbImage:
    """Decode an image, EXIF's or XMP's orientation applied, the first frame of an animated one.

    Args:
        data: The encoded image.
        policy: Formats and limits.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ImageTooLarge: More bytes, pixels, memory or metadata than the limits.
        UnsupportedImageFormat: A format that is not on the policy's list, or not installed.
        ImageDecodeError: Not an image, or a damaged one.
    """
    return upright(open_encoded(data, policy).load())


def from_array(array: NDArray[np.uint8]) -> Stored:
    """Take an array as it is: grey, RGB, or RGBA without its alpha.

    Raises:
        InvalidUserInput: It has another shape or dtype.
    """
    if array.dtype == np.uint8 and array.size:
        if array.shape[2:] in ((), (1,)) and array.shape[1:]:
            return Stored(Image.fromarray(array.reshape(array.shape[:2])))
        if array.shape[2:] in ((3,), (4,)):
            return Stored(array[..., :_CHANNELS])
    remedy = ""
    if array.dtype.kind == "f":
        remedy = ". If its values are 0 to 1, pass (array * 255).round().astype(np.uint8)"
    elif array.dtype == np.uint16:
        remedy = ". If its values are 0 to 65535, pass (array >> 8).astype(np.uint8)"
    elif array.shape[:1] in ((1,), (3,), (4,)) and array.shape[2:]:
        remedy = ". If its channels come first, pass array.transpose(1, 2, 0)"
    raise InvalidUserInput(
        f"an array of dtype {array.dtype} and shape {array.shape}: images are uint8 (height, "
        f"width, 3) in the order red, green, blue, or with 4 channels, or grey{remedy}"
    )


_READING = [threading.Lock() for _ in range(61)]
"""An image that `Image.open` returned is read at its first use, which two calls may not do at the
same time. Pillow's images have no place for a lock: each shares one of these with some others."""


def from_pillow(image: Image.Image, policy: SourcePolicy) -> Stored:
    """Take a Pillow image, which is left as it is.

    Raises:
        ImageTooLarge: Beyond a limit.
        ImageDecodeError: It cannot be read.
        UnsupportedImageFormat: Its pixels have no 8-bit meaning.
    """
    check_size(image.size, policy)
    try:
        with _READING[id(image) // 16 % len(_READING)]:
            image.load()
        pixels = _to_rgb(image)
        pixels.load()
        return Stored(pixels, orientation_of(image))
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as exc:
        raise ImageDecodeError(f"the PIL image cannot be read: {exc}") from exc


def upright(stored: Stored) -> RgbImage:
    """Return the pixels the right way up, uint8 `(height, width, 3)`.

    Raises:
        ImageTooLarge: There is not enough memory for them.
    """
    pixels = stored.pixels
    if isinstance(pixels, Image.Image):
        width, height = pixels.size
        try:
            array = np.empty((height, width, _CHANNELS), np.uint8)
        except MemoryError as exc:
            raise ImageTooLarge(
                f"there is not enough memory for the pixels of an image of {width} x {height}"
            ) from exc
        for top in range(0, height, _STRIP_ROWS):  # in strips, so that it is not there thrice
            bottom = min(top + _STRIP_ROWS, height)
            strip = pixels.crop((0, top, width, bottom))
            array[top:bottom] = np.asarray(strip.convert("RGB"))
        pixels = array
    return turn_upright(pixels, stored.orientation)


def _decoder(name: ImageFormat) -> type[ImageFile.ImageFile]:
    module, attribute = _DECODERS[name]
    try:
        decoder: type[ImageFile.ImageFile] = getattr(import_module(module), attribute)
    except ImportError as exc:
        raise UnsupportedImageFormat(
            'HEIC, as iPhones make it, is read with an extra: pip install "aioembed[heif]"'
        ) from exc
    return decoder


def _side(tag: object) -> int:
    return tag if isinstance(tag, int) else 0


def _bytes_per_pixel(image: ImageFile.ImageFile, name: ImageFormat) -> float:
    """Return how much memory decoding and conversion take at most, per pixel."""
    mode = image.mode
    pixels = 2 if mode.startswith("I;16") else _BYTES_OF_MODE.get(mode, 4)
    conversion = 0 if mode in ("L", "RGB") else _BYTES_OF_CONVERSION
    if mode in ("I", "F") or mode.startswith("I;16"):
        conversion += 8
    coefficients = 0.0
    if name == "JPEG" and image.info.get("progressive"):
        layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
        largest = max((v * h for _id, v, h, _table in layers), default=1) or 1
        coefficients = 2.0 * sum(v * h for _id, v, h, _table in layers) / largest
    return pixels + conversion + coefficients + _BYTES_OF_DECODER.get(name, 0.0)


def _check_cost(
    size: tuple[int, int], bytes_per_pixel: float, name: ImageFormat, policy: SourcePolicy
) -> None:
    check_size(size, policy)
    estimate = int(size[0] * size[1] * bytes_per_pixel)
    if policy.max_memory is not None and estimate > policy.max_memory:
        raise _too_large(
            f"decoding this {name} image of {size[0]} x {size[1]} pixels takes about "
            f"{estimate / 1e6:.0f} MB, more than the source policy's max_memory of "
            f"{policy.max_memory / 1e6:.0f} MB",
            "max_memory",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, the image itself where it is in it already."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow gives PGM of more than 8 bits as 32-bit integers from 0 to 65535.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _stretched(image)
    elif image.mode == "LAB":
        return _from_lab(image)
    elif image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode not in _CONVERTIBLE:
        raise UnsupportedImageFormat(
            f"pixels of mode {image.mode!r} have no 8-bit meaning: convert them to 8-bit RGB first"
        )
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    finite = np.isfinite(values)
    if not finite.any():
        return Image.new("L", image.size)
    lowest, highest = float(values[finite].min()), float(values[finite].max())
    scale = 255 / (highest - lowest) if highest > lowest else 0.0
    levels = (np.where(finite, values, lowest) - lowest) * scale
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # noqa: PLC0415  # few need it

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    return transform.apply(image)


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
        if "Memory allocation error" in str(exc):  # libheif's words for it
            raise ImageTooLarge(f"there is not enough memory to decode this {name} image") from exc
        if name == "PNG" and "text" in str(exc).lower() and isinstance(exc, ValueError):
            raise ImageTooLarge(f"a PNG whose text expands too far: {exc}") from exc
        raise ImageDecodeError(f"a damaged or truncated {name} image: {exc}") from exc
