"""What format some bytes are in, by their first ones."""

from __future__ import annotations

from ..errors import ImageDecodeError, UnsupportedImageFormat
from .policy import ImageFormat, SourcePolicy

__all__ = ["image_format", "looks_like_image"]

_SIGNATURES: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"gimp xcf", "XCF"),
    (b"<svg", "SVG"),
    (b"P1\n", "PBM"),
    (b"P4\n", "PBM"),
    (b"P5\n", "PGM"),
    (b"P6\n", "PPM"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_MARKUP = (b"<!doctype", b"<html", b"<?xml")


def _base_media_brands(data: bytes) -> tuple[bytes, ...]:
    size = min(int.from_bytes(data[:4], "big"), 256)
    return (data[8:12], *(data[start : start + 4] for start in range(16, size, 4)))


def _known_format(data: bytes) -> ImageFormat | None:
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and any(brand in _AVIF_BRANDS for brand in _base_media_brands(data)):
        return "AVIF"
    return None


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of a format that can be decoded."""
    return _known_format(data) is not None


def image_format(data: bytes, policy: SourcePolicy) -> ImageFormat:
    """Return the format of an encoded image.

    Args:
        data: The image's bytes; the first 256 decide.
        policy: Which formats are allowed.

    Raises:
        UnsupportedImageFormat: A format that is not on the policy's list.
        ImageDecodeError: No image at all.
    """
    name: str | None = _known_format(data)
    if name is None:
        _refuse_unknown(data)
    for allowed in policy.formats:
        if allowed == name:
            return allowed
    raise UnsupportedImageFormat(
        f"a {name} image: the source policy's formats are {', '.join(sorted(policy.formats))}. "
        f"Convert it, or use SourcePolicy.allow(formats=...) with {name!r} among them"
    )


def _refuse_unknown(data: bytes) -> None:
    if not data:
        raise ImageDecodeError("no image: there are 0 bytes")
    head = data[:64].lstrip()
    other = next((name for signature, name in _OTHERS if head.startswith(signature)), None)
    if other is None and data[4:8] == b"ftyp":
        other = f"ISO base media ({data[8:12].decode('latin-1').strip()})"
    if other is not None:
        raise UnsupportedImageFormat(f"{other} images are not supported: convert it to PNG or JPEG")
    if head.lower().startswith(_MARKUP):
        raise ImageDecodeError("no image but a page of markup (HTML or XML)")
    raise ImageDecodeError(f"no image: it starts with the bytes {data[:8].hex(' ')}")
