"""Limits, formats, orientation, colour, and one bad image among good ones."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import anyio
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo

from aioembed.errors import (
    AioembedError,
    ImageDecodeError,
    ImageTooLarge,
    InvalidConfig,
    InvalidUserInput,
    UnsupportedImageFormat,
)
from aioembed.images import (
    ImageInput,
    SourcePolicy,
    decode,
    in_rgb,
    load_image,
    prepare,
    preprocess,
)
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING

from .support import drawn, encoded

TRUSTED = SourcePolicy.trusted()
UNTRUSTED = SourcePolicy.untrusted()
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with some chunks before its data, and hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(drawn(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(drawn(), "GIF"))
    at = data.index(b"\x2c", 13 + 768)
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(drawn(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(width: int, height: int) -> bytes:
    bits = [(258, 3, 1, 8), (273, 4, 1, 8), (278, 4, 1, height)]
    entries = [(256, 4, 1, width), (257, 4, 1, height), *bits]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + b"\0" * 4


@pytest.mark.parametrize("forge", [png_of, jpeg_of, gif_of, bmp_of, webp_of, tiff_of])
@pytest.mark.parametrize("size", [(40_000, 10), (30_000, 30_000)])
def test_giant_dimensions_are_refused_before_decoding(
    forge: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    data = forge(*size)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match=r"SourcePolicy\.allow\(max_|MAX_IMAGE_PIXELS"):
            decode(data, UNTRUSTED)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_the_pixel_cap_is_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(drawn(40, 30), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, UNTRUSTED).shape == (30, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageTooLarge, match="max_pixels"):
        decode(data, UNTRUSTED.allow(max_pixels=1199))
    assert Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_png_text_bombs_are_refused(name: bytes) -> None:
    head = b"Comment\0\1\0\0\0" if name == b"iTXt" else b"Comment\0\0"
    bomb = head + zlib.compress(b"a" * 50_000_000, 9)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="text expands"):
            decode(png_of(8, 8, (name, bomb)), TRUSTED)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def _with_scan_of_one(jpeg: bytes) -> bytes:
    return jpeg.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x01")


def _gif_with(pieces: bytes) -> bytes:
    gif = encoded(drawn(), "GIF")
    return gif[:781] + pieces + gif[781:]


def _jpeg_with(pieces: bytes) -> bytes:
    jpeg = encoded(drawn(), "JPEG")
    return jpeg[:20] + pieces + jpeg[20:]  # behind its JFIF segment


FLOODS = {
    "GIF comment": lambda: _gif_with(b"\x21\xfe" + b"\x01a" * 100_000 + b"\0"),
    "GIF comments": lambda: _gif_with(b"\x21\xfe\x01a\0" * 100_000),
    "GIF extensions": lambda: _gif_with(b"\x21\xff\x01a\0" * 100_000),
    "GIF stray bytes": lambda: _gif_with(b"\0" * 100_000),
    "PNG texts": lambda: png_of(8, 8, *[(b"tEXt", b"")] * 70_000),
    "PNG data": lambda: png_of(8, 8, *[(b"IDAT", b"")] * 300_000),
    "PNG compressed texts": lambda: png_of(8, 8, *[(b"zTXt", b"a\0\0x")] * 1100),
    "JPEG comments": lambda: _jpeg_with(b"\xff\xfe\0\2" * 70_000),
    "JPEG stray bytes": lambda: _jpeg_with(b"\0" * 70_000),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_metadata_that_only_costs_time_is_refused(flood: str) -> None:
    data = FLOODS[flood]()
    with pytest.raises(ImageTooLarge, match="without metadata"):
        decode(data, TRUSTED)


@pytest.mark.parametrize("progressive", [True, False])
def test_jpegs_of_countless_scans_are_refused(progressive: bool) -> None:
    jpeg = encoded(drawn(), "JPEG", progressive=progressive)
    if not progressive:  # its first scan lacks two components
        jpeg = _with_scan_of_one(jpeg)
    with pytest.raises(ImageTooLarge, match="scans"):
        decode(jpeg[:-2] + b"\xff\xda\0\2" * 300, TRUSTED)
    hidden = b"\xff\xfe\0\4\xff\xd9"  # an end of image that is but a comment
    with pytest.raises(ImageTooLarge, match="scans"):
        decode(jpeg[:-2] + hidden + b"\xff\xda\0\2" * 300, TRUSTED)


def test_scans_that_follow_the_image_do_not_count() -> None:
    """As in a phone's photo with a film behind it."""
    jpeg = encoded(drawn(), "JPEG", progressive=True)
    assert np.array_equal(decode(jpeg + b"\xff\xda" * 300, TRUSTED), decode(jpeg, TRUSTED))


def test_tiffs_of_countless_strips_are_refused() -> None:
    count = 100_000
    tags = [(256, 4, 1, 8), (257, 4, 1, count), (273, 4, count, 200), (278, 4, 1, 1)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    with pytest.raises(ImageTooLarge, match="strips"):
        decode(head + directory + b"\0" * (4 * count + 200), TRUSTED.allow(max_dimension=count))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tiff_tags_over_the_same_bytes_take_no_memory() -> None:
    tags = [(256, 4, 1, 8), (257, 4, 1, 8)]
    tags += [(40_000 + index, 1, 60_000, 8) for index in range(4000)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + directory + b"\0" * 60_000
    tracemalloc.start()
    try:
        with pytest.raises(AioembedError):
            decode(data, TRUSTED)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("offset", [16, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_tiff_offsets_beyond_the_file_are_typed_errors(order: str, offset: int) -> None:
    mark = b"II" if order == "<" else b"MM"
    wide = offset.to_bytes(8, "little" if order == "<" else "big")
    narrow = struct.pack(order + "I", min(offset, 2**32 - 1))
    big = mark + struct.pack(order + "HHH", 43, 8, 0)
    entries = [(256, 4, 1), (257, 4, 1), (273, 16, 2)]  # its strips' places lie at the offset
    size = [struct.pack(order + "HHQQ", *entry, 8) for entry in entries[:2]]
    strips = struct.pack(order + "HHQ", *entries[2]) + wide
    directory = struct.pack(order + "QQ", 16, 3) + b"".join(size) + strips + bytes(8)
    for data in (big + wide, mark + struct.pack(order + "H", 42) + narrow, big + directory):
        with pytest.raises(AioembedError):
            decode(data, TRUSTED)


def test_in_memory_images_keep_to_the_limits() -> None:
    small = UNTRUSTED.allow(max_pixels=100)

    async def main() -> None:
        for source in (drawn(20, 20), np.zeros((20, 20, 3), np.uint8)):
            with pytest.raises(ImageTooLarge):
                await load_image(source, policy=small)
        with pytest.raises(ImageTooLarge, match="max_bytes"):
            await load_image(b"x" * 200, policy=UNTRUSTED.allow(max_bytes=100))

    anyio.run(main)


def test_a_lack_of_memory_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", lack)
        with pytest.raises(ImageTooLarge, match="not enough memory"):
            decode(encoded(drawn(), "PNG"), TRUSTED)
    for error in (MemoryError(), ValueError("Memory allocation error: Allocating 9 bytes failed")):
        with monkeypatch.context() as patch:
            patch.setattr(PngImageFile, "load", Mock(side_effect=error))
            with pytest.raises(ImageTooLarge, match="not enough memory"):
                decode(encoded(drawn(), "PNG"), TRUSTED)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_images_are_typed_errors(name: str) -> None:
    data = encoded(drawn(), name, **FORMATS[name])
    for end in range(0, len(data) - 40, max(1, len(data) // 60)):
        with pytest.raises((ImageDecodeError, ImageTooLarge)):
            decode(data[:end], TRUSTED)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"8BPS\0\1" + b"\0" * 20, "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 16, "HEIC"),
        (b"P6\n2 2\n255\n" + b"\0" * 12, "PPM"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"\xff\x0a" + b"\0" * 20, "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x18ftypcrx " + b"\0" * 16, "camera RAW"),
        (b"FUJIFILMCCD-RAW 0201", "camera RAW"),
    ],
)
def test_unlisted_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=name):
        decode(data, UNTRUSTED)


def test_the_policy_can_narrow_the_formats() -> None:
    with pytest.raises(UnsupportedImageFormat, match=r"GIF.*allow\(formats="):
        decode(encoded(drawn(), "GIF"), TRUSTED.allow(formats={"PNG"}))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>", "markup"),
        (b"hello, world", "68 65 6c"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
    ],
)
def test_bytes_that_are_not_an_image_are_named(data: bytes, what: str) -> None:
    with pytest.raises(ImageDecodeError, match=what):
        decode(data, TRUSTED)


@pytest.mark.parametrize("name", FORMATS)
def test_every_listed_format_decodes_to_its_pixels(name: str) -> None:
    image = drawn()
    got = decode(encoded(image, name, **FORMATS[name]), UNTRUSTED).astype(int)
    tolerance = {"JPEG": 12, "AVIF": 12, "GIF": 40}.get(name, 0)
    assert np.abs(got - np.asarray(image).astype(int)).max() <= tolerance


def turned(orientation: int) -> Image.Image:
    """The drawn scene stored such that the orientation makes it upright."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return drawn().transpose(undo[orientation]) if orientation in undo else drawn()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(turned(orientation), name, exif=exif.tobytes(), **FORMATS[name])
    got = decode(data, UNTRUSTED).astype(int)
    expected = np.asarray(drawn()).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= (14 if name in ("JPEG", "AVIF") else 0)


def test_a_pillow_image_that_still_has_its_orientation_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(turned(6), "PNG", exif=exif.tobytes())

    async def main() -> None:
        got = await load_image(Image.open(io.BytesIO(data)), policy=TRUSTED)
        assert np.array_equal(got, np.asarray(drawn()))

    anyio.run(main)


def of_mode(image: ImageInput) -> np.ndarray:
    """Load an image as it is."""
    holder: list[np.ndarray] = []

    async def main() -> None:
        holder.append(await load_image(image, policy=TRUSTED))

    anyio.run(main)
    return holder[0]


def test_greyscale_and_bilevel_go_into_all_channels() -> None:
    grey = drawn().convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, -1)
    assert np.array_equal(decode(encoded(grey, "PNG"), TRUSTED), expected)
    bilevel = drawn().convert("1")
    got = decode(encoded(bilevel, "PNG"), TRUSTED)
    assert np.array_equal(got[..., 0], np.asarray(bilevel) * 255)


def test_palette_gives_its_colours_with_or_without_transparency() -> None:
    palette = drawn().quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode(encoded(palette, "PNG"), TRUSTED), expected)
    transparent = encoded(palette, "PNG", transparency=bytes(range(32)))
    assert np.array_equal(decode(transparent, TRUSTED), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_without_blending(mode: str) -> None:
    image = drawn().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = np.asarray(drawn().convert(mode[:-1]).convert("RGB"))
    assert np.array_equal(decode(encoded(image, "PNG"), TRUSTED), expected)
    if mode == "RGBA":
        webp = encoded(image, "WEBP", lossless=True, exact=True)
        assert np.array_equal(decode(webp, TRUSTED), expected)


def test_premultiplied_alpha_is_divided_out() -> None:
    image = drawn().convert("RGBA")
    image.putalpha(200)
    got = of_mode(image.convert("RGBa")).astype(int)
    assert np.abs(got - np.asarray(drawn()).astype(int)).max() <= 1


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = (np.arange(61 * 47).reshape(47, 61) * 22).astype(np.uint16)
    got = decode(encoded(Image.fromarray(values), "PNG"), TRUSTED)
    assert np.array_equal(got[..., 1], values >> 8)
    assert np.array_equal(decode(encoded(Image.fromarray(values), "TIFF"), TRUSTED), got)


def test_cmyk_is_ink_times_black() -> None:
    inks = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    image = Image.frombytes("CMYK", (16, 16), inks.tobytes())
    got = decode(encoded(image, "TIFF"), TRUSTED).astype(float)
    white = 255.0 - inks
    expected = white[..., :3] * white[..., 3:] / 255
    assert np.abs(got - expected).max() <= 1
    assert decode(encoded(drawn().convert("CMYK"), "JPEG"), TRUSTED).shape == (47, 61, 3)


def test_animations_give_their_first_frame() -> None:
    second = Image.new("RGB", drawn().size)
    frames: dict[str, Any] = {"save_all": True, "append_images": [second], "duration": 50}
    expected = np.asarray(drawn())
    assert np.array_equal(decode(encoded(drawn(), "PNG", **frames), TRUSTED), expected)
    webp = encoded(drawn(), "WEBP", lossless=True, **frames)
    assert np.array_equal(decode(webp, TRUSTED), expected)
    still = decode(encoded(drawn(), "GIF"), TRUSTED)
    assert np.array_equal(decode(encoded(drawn(), "GIF", **frames), TRUSTED), still)


def test_icc_profiles_are_ignored() -> None:
    plain = decode(encoded(drawn(), "PNG"), TRUSTED)
    tagged = encoded(drawn(), "PNG", icc_profile=b"a profile of another colour space" * 20)
    assert np.array_equal(decode(tagged, TRUSTED), plain)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_range_are_stretched_over_theirs(dtype: type) -> None:
    values: np.ndarray = (np.arange(61 * 47).reshape(47, 61) * 10 - 3000).astype(dtype)
    expected = np.rint((values + 3000) * (255 / (61 * 47 * 10 - 10)))
    got = decode(encoded(Image.fromarray(values), "TIFF"), TRUSTED)
    assert np.array_equal(got, np.repeat(expected[..., None], 3, -1))
    flat = decode(encoded(Image.fromarray(np.full((4, 4), 7, dtype)), "TIFF"), TRUSTED)
    assert not flat.any()


def test_numbers_that_are_not_finite_do_not_count() -> None:
    values = np.array([[0, 1, 2, np.nan, np.inf, -np.inf]], np.float32)
    got = decode(encoded(Image.fromarray(values), "TIFF"), TRUSTED)
    assert got[0, :, 0].tolist() == [0, 128, 255, 0, 0, 0]
    nothing = Image.fromarray(np.full((2, 2), np.nan, np.float32))
    assert not decode(encoded(nothing, "TIFF"), TRUSTED).any()


def test_lab_becomes_srgb() -> None:
    lab = ImageCms.profileToProfile(
        drawn(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    got = decode(encoded(lab, "TIFF"), TRUSTED).astype(int)
    assert np.abs(got - np.asarray(drawn())).mean() < 3


def test_pgm_of_sixteen_bits_keeps_its_upper_eight() -> None:
    values: np.ndarray = np.arange(0, 65_536, 257, dtype=">u2").reshape(16, 16)
    got = decode(b"P5 16 16 65535\n" + values.tobytes(), TRUSTED)
    assert np.array_equal(got[..., 0], values >> 8)


def test_one_bad_image_does_not_affect_the_others(png: bytes) -> None:
    outcomes: list[object] = [None] * 5

    async def one(index: int, source: bytes) -> None:
        try:
            outcomes[index] = await prepare(source, RNE_PREPROCESSING, policy=UNTRUSTED)
        except AioembedError as exc:
            outcomes[index] = exc

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for index in range(5):
                tasks.start_soon(one, index, png[:60] if index == 2 else png)

    anyio.run(main)
    assert isinstance(outcomes.pop(2), ImageDecodeError)
    assert all(isinstance(outcome, np.ndarray) for outcome in outcomes)


def test_the_callers_pillow_image_is_left_as_it_is() -> None:
    image = drawn().quantize(16)
    image.info["transparency"] = b"\1\2"
    of_mode(image)
    assert image.mode == "P"
    assert image.info["transparency"] == b"\1\2"


def test_an_image_that_is_not_read_yet_may_be_given_to_several_calls() -> None:
    """Pillow reads a file at the first use of its pixels; two threads may not do that together."""
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    expected = np.asarray(noise)

    async def main() -> None:
        async def one(image: Image.Image) -> None:
            assert (await load_image(image, policy=TRUSTED) == expected).all()

        for _ in range(5):
            opened = Image.open(io.BytesIO(content))
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(one, opened)

    anyio.run(main)


def test_a_value_that_is_not_an_input_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(InvalidUserInput, match="int"):
            await load_image(5, policy=TRUSTED)  # type: ignore[arg-type]

    anyio.run(main)


OTHER_FORMATS: dict[str, dict[str, Any]] = {
    "JPEG2000": {},
    "ICO": {"sizes": [(61, 47)]},
    "PPM": {},
    "TGA": {},
    "PCX": {},
    "QOI": {},
    "DIB": {},
    "MPO": {"quality": 95, "subsampling": 0},
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_formats_of_a_programs_own_files_decode_to_their_pixels(name: str) -> None:
    data = encoded(drawn(), name, **OTHER_FORMATS[name])
    got = decode(data, TRUSTED).astype(int)
    assert np.abs(got - np.asarray(drawn()).astype(int)).max() <= (12 if name == "MPO" else 0)
    if name != "MPO":  # which begins as a JPEG, and is one
        with pytest.raises((UnsupportedImageFormat, ImageDecodeError)):
            decode(data, UNTRUSTED)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_pgm_and_pbm_decode(mode: str) -> None:
    image = drawn().convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(encoded(image, "PPM"), TRUSTED), expected)


@pytest.mark.parametrize("stray", [b"\x12\x34\x56", b"\0" * 9, b"\xff\xff\xff", b"\xff\0"])
def test_stray_bytes_between_the_segments_of_a_jpeg_are_skipped(stray: bytes) -> None:
    jpeg = encoded(drawn(), "JPEG", quality=92)
    scan = jpeg.index(b"\xff\xda")
    assert np.array_equal(decode(jpeg[:scan] + stray + jpeg[scan:], TRUSTED), decode(jpeg, TRUSTED))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tiff_tags_that_point_beyond_the_file_are_ignored_unless_needed() -> None:
    for tag in (270, 305, 34377, 33723):
        data = tiff_with_tag(tag, 10_000)
        assert decode(data, TRUSTED).shape == (47, 61, 3)
    with pytest.raises(ImageDecodeError):
        decode(tiff_with_tag(273, 10_000), TRUSTED)


def tiff_with_tag(tag: int, offset: int) -> bytes:
    """An uncompressed TIFF, one of its tags pointing far away."""
    pixels = np.asarray(drawn()).tobytes()
    tags = {256: (4, 1, 61), 257: (4, 1, 47), 258: (3, 1, 8), 262: (3, 1, 2), 277: (3, 1, 3)}
    tags |= {278: (4, 1, 47), 279: (4, 1, len(pixels)), 273: (4, 1, 300), tag: (4, 900, offset)}
    directory = b"".join(struct.pack("<HHII", key, *tags[key]) for key in sorted(tags))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + directory + b"\0" * 4
    bits = head.ljust(300, b"\0")
    return bits + pixels


@pytest.mark.parametrize(("name", "options"), [
    ("JPEG", {"quality": 95}), ("JPEG", {"progressive": True}), ("PNG", {}),
    ("PNG", {"compress_level": 0}),
])  # fmt: skip
def test_a_truncated_image_is_decoded_where_allowed(name: str, options: dict[str, Any]) -> None:
    scene = Image.effect_noise((200, 160), 40).convert("RGB")
    complete = decode(encoded(scene, name, **options), TRUSTED)
    data = encoded(scene, name, **options)
    allowing = TRUSTED.allow(truncated="allow")
    for short in (100, len(data) // 2):
        with pytest.raises(ImageDecodeError, match='truncated="allow"') as caught:
            decode(data[:-short], TRUSTED)
        assert caught.value.rule == "truncated"
        left = decode(data[:-short], allowing)
        assert left.shape == complete.shape
        if "progressive" not in options:
            assert np.array_equal(left[:60], complete[:60])
    assert np.array_equal(decode(data, allowing), complete)
    with pytest.raises(ImageDecodeError):
        decode(data[:40], allowing)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


XMP = (
    "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-"
    "syntax-ns#'><rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/' {}</rdf:RDF>"
    "</x:xmpmeta>"
)
XMP_FORMS = [
    'tiff:Orientation="6"/>',
    "tiff:Orientation='6'/>",
    'tiff:Orientation = "6"/>',
    "><tiff:Orientation>6</tiff:Orientation></rdf:Description>",
    "><tiff:Orientation> 6 </tiff:Orientation></rdf:Description>",
]


def with_xmp(name: str, xmp: bytes) -> bytes:
    if name == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return encoded(turned(6), "PNG", pnginfo=info)
    if name == "TIFF":
        return encoded(turned(6), "TIFF", tiffinfo={700: xmp})
    return encoded(turned(6), name, xmp=xmp, **FORMATS[name])


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("form", XMP_FORMS)
def test_orientation_is_taken_from_xmp_where_exif_has_none(name: str, form: str) -> None:
    data = with_xmp(name, XMP.format(form).encode())
    expected = np.asarray(drawn()).astype(int)
    for source in (data, Image.open(io.BytesIO(data))):
        got = of_mode(source).astype(int)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= (14 if name == "JPEG" else 0)


def test_exif_counts_before_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    xmp = XMP.format(XMP_FORMS[0]).encode()
    data = encoded(drawn(), "WEBP", lossless=True, exif=exif.tobytes(), xmp=xmp)
    assert np.array_equal(decode(data, TRUSTED), np.asarray(drawn()))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_image(name: str) -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0nothing", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\0\1"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = encoded(drawn(), name, exif=exif, **FORMATS[name])
            assert decode(data, TRUSTED).shape == (47, 61, 3)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("as_exif", [False, True])
def test_heic_gives_the_vector_of_its_pixels(rotated: bool, as_exif: bool) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pytest.importorskip("pi_heif")
    scene = drawn(320, 240)
    made = scene.transpose(Image.Transpose.ROTATE_90) if rotated else scene
    exif = Image.Exif()
    exif[0x0112] = orientation = (
        6 if rotated else 1
    )  # the encoder makes a rotation property of either
    options = {"xmp": XMP.format(f'tiff:Orientation="{orientation}"/>').encode()}
    if as_exif:
        options = {"exif": exif.tobytes()}
    buffer = io.BytesIO()
    pillow_heif.from_pillow(made).save(buffer, quality=95, **options)
    tensors = [
        preprocess(decode(data, TRUSTED), CLIP_PREPROCESSING).ravel()
        for data in (buffer.getvalue(), encoded(scene, "PNG"))
    ]
    one, other = tensors
    assert one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) >= 0.999


def test_heic_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(UnsupportedImageFormat, match=r"HEIC, as iPhones.*aioembed\[heif\]"):
        decode(b"\0\0\0\x18ftypmif1" + b"\0\0\0\0heicmif1", TRUSTED)


@pytest.mark.parametrize("array", [
    np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
])  # fmt: skip
def test_grey_arrays_are_images(array: np.ndarray) -> None:
    assert np.array_equal(of_mode(array), np.repeat(array.reshape(3, 4, 1), 3, -1))


def test_arrays_in_another_order_are_images() -> None:
    rgb = np.asarray(drawn())
    alpha = np.full((47, 61, 1), 9, np.uint8)
    orders = {"RGB": rgb, "BGR": rgb[..., ::-1], "RGBA": np.concatenate((rgb, alpha), -1)}
    orders["BGRA"] = np.concatenate((rgb[..., ::-1], alpha), -1)

    async def main() -> None:
        for name, array in orders.items():
            got = await load_image(array, policy=TRUSTED, format=name)  # type: ignore[arg-type]
            assert np.array_equal(got, rgb)
            tensor = await prepare(in_rgb(array, name), RNE_PREPROCESSING, policy=TRUSTED)  # type: ignore[arg-type]
            assert np.array_equal(tensor, preprocess(rgb, RNE_PREPROCESSING))
        for source, order in ((rgb, "BGRA"), (orders["RGBA"], "BGR")):
            with pytest.raises(InvalidUserInput, match="format="):
                await load_image(source, policy=TRUSTED, format=order)  # type: ignore[arg-type]
        with pytest.raises(InvalidConfig, match="goes with arrays"):
            await load_image(drawn(), policy=TRUSTED, format="BGR")
        with pytest.raises(InvalidConfig, match="one of RGB, BGR"):
            await load_image(rgb, policy=TRUSTED, format="GBR")  # type: ignore[arg-type]

    anyio.run(main)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((4, 4, 3), np.float32), r"\(array \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (np.zeros((4, 4, 3), np.uint16), r"array >> 8"),
        (np.zeros((3, 8, 8), np.uint8), r"transpose\(1, 2, 0\)"),
    ],
)
def test_arrays_that_are_nearly_images_get_the_line_that_converts_them(
    array: np.ndarray, remedy: str
) -> None:
    with pytest.raises(InvalidUserInput, match=remedy):
        preprocess(array, RNE_PREPROCESSING)
