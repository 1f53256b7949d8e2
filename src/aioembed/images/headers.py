"""What an encoded image says before it is decoded: its format, its orientation, and what it costs.

Pillow parses the headers. What is here are the bounds that it does not hold: files whose metadata
takes minutes to pass over, canvases that are allocated before their size is known, and progressive
JPEGs of thousands of scans.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping

from PIL import Image

from ..errors import ImageDecodeError, ImageTooLarge, UnsupportedImageFormat
from .policy import ImageFormat, SourcePolicy

__all__ = [
    "MeteredFile",
    "check_compressed_text",
    "check_scans",
    "image_format",
    "looks_like_image",
    "orientation_of",
    "usable_tiff",
    "webp_size",
]

_SIGNATURES: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"MM*\0", "TIFF"),
    (b"II\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\1\0", "ICO"),
    (b"qoif", "QOI"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = tuple(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
_UNSUPPORTED: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"gimp xcf", "XCF"),
    (b"<svg", "SVG"),
    (b"FUJIFILMCCD-RAW", "camera RAW (RAF)"),
    (b"IIRO", "camera RAW (ORF)"),
    (b"IIRS", "camera RAW (ORF)"),
    (b"MMOR", "camera RAW (ORF)"),
    (b"IIU\0", "camera RAW (RW2)"),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml")
_AS_PEOPLE_SAY: Mapping[str, str] = {
    "HEIF": "HEIC or HEIF (as iPhones make it)",
    "JPEG2000": "JPEG 2000",
    "PPM": "PPM, PGM or PBM",
    "WEBP": "WebP",
}

_DIB_HEADER, _TGA_HEADER, _WEBP_HEADER = 16, 18, 30
_DIB_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_BIG_TIFF = 43

_MOST_READS = 65_536
_MOST_TEXTS = 1000
_MOST_SCANS = 256
_MOST_STRIPS = 65_536
_MOST_TAGS = 4096
_STRIP_TAGS = (273, 324)
_BYTES_OF_TYPE = dict(enumerate((0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)))

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>\s*)([1-8])")
_UPRIGHT_ALREADY = frozenset(("AVIF", "HEIF"))
"""Formats with their own rotation: Pillow's plugins fold it into EXIF, and XMP does not count."""

_STANDALONE_OR_NONE = rb"\x00\xff\x01\xd0-\xd7"
_MARKER = re.compile(rb"\xff([^" + _STANDALONE_OR_NONE + rb"])", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are the signature of a format that can be decoded."""
    return _by_signature(data) is not None


def image_format(data: bytes, policy: SourcePolicy) -> ImageFormat:
    """Return the format of an encoded image.

    Args:
        data: The image's bytes; the first 256 decide.
        policy: Which formats are allowed.

    Raises:
        UnsupportedImageFormat: A format that is not on the policy's list, or not supported.
        ImageDecodeError: Not an image at all.
    """
    name = _by_signature(data)
    if name is None and _unsupported_name(data) is None:
        # Weak signatures, that anything may begin with, count only where they are allowed.
        name = next((weak for weak in _by_fields(data) if weak in policy.formats), None)
    if name is None:
        raise _not_an_image(data)
    if name not in policy.formats:
        shown = _AS_PEOPLE_SAY.get(name, name)
        raise UnsupportedImageFormat(
            f"a {shown} image, and the source policy's formats are "
            f"{', '.join(sorted(policy.formats))}",
            rule="formats",
            remedy=f"convert it, or use SourcePolicy.allow(formats=...) with {name!r} among them",
        )
    return name


def _by_signature(data: bytes) -> ImageFormat | None:
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:1] == b"P" and data[1:2] in b"123456fy" and data[2:3].isspace():
        return "PPM"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[8:12], *(data[start : start + 4] for start in range(16, size, 4))]
        if any(brand in _AVIF_BRANDS for brand in brands):
            return "AVIF"
        return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else None
    return None


def _by_fields(data: bytes) -> list[ImageFormat]:
    """Return formats without a signature that the first fields fit (as Pillow's plugins say)."""
    fit: list[ImageFormat] = []
    if data[:1] == b"\x0a" and data[1:2] in (b"\0", b"\2", b"\3", b"\5"):
        fit.append("PCX")
    if len(data) >= _DIB_HEADER and int.from_bytes(data[:4], "little") in _DIB_HEADER_SIZES:
        fit.append("DIB")
    is_tga = (
        len(data) >= _TGA_HEADER
        and data[1] in (0, 1)
        and data[2] in (1, 2, 3, 9, 10, 11)
        and data[16] in (1, 8, 16, 24, 32)
        and any(data[12:14])
        and any(data[14:16])
    )
    if is_tga:
        fit.append("TGA")
    return fit


def _unsupported_name(data: bytes) -> str | None:
    head = data[:64].lstrip()
    for signature, name in _UNSUPPORTED:
        if head.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1").strip()
        return "camera RAW (CR3)" if brand == "crx" else f"ISO base media ({brand})"
    return None


def _not_an_image(data: bytes) -> ImageDecodeError | UnsupportedImageFormat:
    if not data:
        return ImageDecodeError("not an image: there are 0 bytes")
    name = _unsupported_name(data)
    if name is not None:
        return UnsupportedImageFormat(f"{name} images are not supported: convert it to PNG or JPEG")
    head = data[:64].lstrip()
    if head.lower().startswith(_MARKUP):
        return ImageDecodeError("not an image but a page of markup (HTML or XML)")
    if head.lower().startswith((b"data:", b"http:", b"https:", b"file:")):
        return ImageDecodeError("not an image but the bytes of a URI: pass it as str")
    return ImageDecodeError(f"not an image: it starts with the bytes {data[:8].hex(' ')}")


class MeteredFile(io.BytesIO):
    """An encoded image in memory, for Pillow to read, that bounds how often it is read from.

    Pillow reads metadata piece by piece, in Python. Two minutes go by with 32 MB of empty PNG
    chunks, JPEG comments or stray bytes, and with GIF comments a gigabyte of memory too.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _MOST_READS

    def refill(self, most: int) -> None:
        """Allow this many reads from now on."""
        self._reads_left = most

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, once more.

        Raises:
            ImageTooLarge: Once too often.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ImageTooLarge(
                "the image has more pieces of metadata, or pieces of pixels, than any program "
                "writes: save it again without metadata"
            )
        return super().read(size)


def webp_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that a WebP states (RFC 9649, section 2).

    The decoder makes room for the canvas as soon as it is created.

    Raises:
        ImageDecodeError: It states none.
    """
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= _WEBP_HEADER:
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L" and data[20:21] == b"\x2f":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
        return width & 0x3FFF, height & 0x3FFF
    raise ImageDecodeError("a damaged WebP: its first chunk states no size")


def check_compressed_text(png: bytes) -> None:
    """Refuse a PNG of more compressed text chunks than Pillow expands in a second.

    Raises:
        ImageTooLarge: There are more.
    """
    if sum(map(png.count, (b"zTXt", b"iTXt", b"iCCP"))) > _MOST_TEXTS:
        raise _metadata_refused(f"a PNG of more than {_MOST_TEXTS} compressed texts")


def check_scans(jpeg: bytes, first_scan: int, sequential: int) -> None:
    """Refuse a JPEG of more scans than any program writes: each goes over all pixels.

    Args:
        jpeg: The file.
        first_scan: Where the first scan's data begin.
        sequential: Components of a sequential JPEG, which has no other scan if the first one has
            all of them; 0 for a progressive one.

    Raises:
        ImageTooLarge: There are more than 256.
    """
    header = jpeg.rfind(b"\xff\xda", 0, first_scan)
    if sequential and jpeg[header + 4] == sequential:
        return
    scans, position = 1, first_scan
    while (found := _MARKER.search(jpeg, position)) is not None:
        marker = found[1][0]
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        if scans > _MOST_SCANS:
            raise _metadata_refused(f"a JPEG with more than {_MOST_SCANS} scans")
        length = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 1)


def usable_tiff(data: bytes) -> bytes:
    """Return a TIFF without the tags that point beyond it, which would end Pillow's reading.

    Source: TIFF 6.0, section 2, and the BigTIFF design (43 instead of 42, 8-byte fields).

    Raises:
        ImageTooLarge: It has more than 65,536 strips or tiles: each becomes an object.
    """
    order = ">" if data[:1] == b"M" else "<"
    is_big = _BIG_TIFF in data[2:4]
    beyond: list[int] = []
    try:
        (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)
        place += 8 if is_big else 2
        entry = struct.Struct(order + ("HHQQ" if is_big else "HHII"))
        for at in range(place, place + min(count, _MOST_TAGS) * entry.size, entry.size):
            tag, kind, items, value = entry.unpack_from(data, at)
            if tag in _STRIP_TAGS and items > _MOST_STRIPS:
                raise _metadata_refused(f"a TIFF with more than {_MOST_STRIPS} strips or tiles")
            size = items * _BYTES_OF_TYPE.get(kind, 0)
            if size > (8 if is_big else 4) and value + size > len(data):
                beyond.append(at)
    except (struct.error, OverflowError):
        pass  # the directory does not lie within the file, which Pillow will find too
    if not beyond:
        return data
    usable = bytearray(data)
    for at in beyond:
        usable[at + 2 : at + 4] = b"\0\0"  # of no type, which readers skip
    return bytes(usable)


def _metadata_refused(problem: str) -> ImageTooLarge:
    return ImageTooLarge(f"{problem}: save the image again without metadata")


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, that EXIF states, else XMP; 1 where neither does.

    Args:
        image: With its metadata still there, decoded or not.
    """
    try:
        stated = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001  # whatever damaged metadata lead Pillow to: the pixels count
        stated = None
    if isinstance(stated, int) and stated in range(1, 9):
        return stated
    if image.format in _UPRIGHT_ALREADY:
        return 1
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    found = _XMP_ORIENTATION.search(text) if isinstance(text, bytes) else None
    return int(found[1]) if found else 1
