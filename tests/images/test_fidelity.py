"""The pixels are the ones the model was meant to see."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from aioembed.errors import InvalidConfig, InvalidUserInput
from aioembed.images import SourcePolicy, decode, preprocess
from aioembed.images.decode import Stored, open_encoded
from aioembed.images.geometry import Turn
from aioembed.images.layout import turn_upright
from aioembed.images.preprocess import program_input, smallest_enough
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING, Preprocessing

from .support import drawn, encoded

SIZES = [
    (1, 1),
    (1, 2),
    (3, 7),
    (1, 5000),
    (5000, 1),
    (2, 5000),
    (112, 112),
    (223, 225),
    (225, 223),
    (224, 224),
    (448, 448),
    (672, 301),
    (1234, 57),
    (1000, 777),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def levels(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(tensor[0].transpose(1, 2, 0) * 255), np.int64)


def reference_clip(rgb: np.ndarray, shortest: int = 224, side: int = 224) -> np.ndarray:
    """The steps of the transformers CLIP image processor: resize, then cut or pad the centre."""
    height, width = rgb.shape[:2]
    short, long = min(width, height), max(width, height)
    resized_long = int(shortest * long / short)
    size = (shortest, resized_long) if width <= height else (resized_long, shortest)
    whole = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    out = np.zeros((side, side, 3), np.uint8)
    source, target = [], []
    for have in whole.shape[:2]:
        first = (have - side) // 2
        source.append(slice(max(first, 0), max(first, 0) + min(have, side)))
        target.append(slice(max(-first, 0), max(-first, 0) + min(have, side)))
    out[tuple(target)] = whole[tuple(source)]
    return np.asarray(out, np.int64)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rne_equals_opencv_bilinear(height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = noise(height, width)
    expected = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(levels(preprocess(rgb, RNE_PREPROCESSING)), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_plain_bicubic_is_within_one_level_of_opencv(height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = noise(height, width)
    cubic = RNE_PREPROCESSING.model_copy(update={"interpolation": "bicubic"})
    expected = cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_CUBIC).astype(int)
    assert np.abs(levels(preprocess(rgb, cubic)) - expected).max() <= 1


LONGEST = [(1, 5000), (5000, 1), (2, 5000)]
"""Their references are hundreds of megapixels large."""


@pytest.mark.parametrize(
    ("height", "width"),
    [
        *[size for size in SIZES if size not in LONGEST],
        (1, 300),
        (300, 1),
        *[pytest.param(*size, marks=pytest.mark.slow) for size in LONGEST],
    ],
)
def test_clip_is_within_one_level_of_the_reference_steps(height: int, width: int) -> None:
    rgb = noise(height, width)
    got = levels(preprocess(rgb, CLIP_PREPROCESSING))
    assert np.abs(got - reference_clip(rgb)).max() <= 1


@pytest.mark.parametrize("shortest", [180, 256])
def test_crop_cuts_or_pads_with_zeros_around_the_centre(shortest: int) -> None:
    rgb = noise(301, 402)
    wanted = CLIP_PREPROCESSING.model_copy(update={"shortest_edge": shortest})
    expected = reference_clip(rgb, shortest)
    assert np.abs(levels(preprocess(rgb, wanted)) - expected).max() <= 1


@pytest.mark.parametrize("preprocessing", [RNE_PREPROCESSING, CLIP_PREPROCESSING])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1500, 90)])
def test_a_pillow_image_and_its_array_give_the_same(
    size: tuple[int, int], preprocessing: Preprocessing
) -> None:
    image = drawn(*size)
    from_image = program_input(Stored(image, size), preprocessing)
    assert np.array_equal(from_image, preprocess(np.asarray(image), preprocessing))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("preprocessing", [RNE_PREPROCESSING, CLIP_PREPROCESSING])
def test_turning_after_resampling_equals_turning_before(
    orientation: int, preprocessing: Preprocessing
) -> None:
    image = drawn(321, 200)
    upright = turn_upright(np.asarray(image), Turn.of(orientation))
    got = program_input(Stored(image, image.size, orientation), preprocessing)
    assert np.abs(levels(got) - levels(preprocess(upright, preprocessing))).max() <= 1


def large_photograph(photographs: Path, name: str, short: int) -> Image.Image:
    with Image.open(photographs / name) as image:
        factor = short / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def of_many(photographs: Path, side: int) -> Image.Image:
    """Photographs at their own size, so that edges, grain and strong colours are sharp."""
    tiles = [Image.open(path).convert("RGB") for path in sorted(photographs.glob("*.*g"))]
    canvas = Image.new("RGB", (side, side))
    for number, (top, left) in enumerate(product(range(0, side, 299), range(0, side, 401))):
        begin = number * 37 % 150
        tile = tiles[number * 5 % len(tiles)].crop((begin, begin, begin + 401, begin + 299))
        canvas.paste(tile, (left, top))
    return canvas


def at_side(side: int) -> Preprocessing:
    return CLIP_PREPROCESSING.model_copy(update={"width": side, "height": side})


def strokes(side: int, count: int = 10_000) -> Image.Image:
    """Lines of one pixel, the hardest for a decoder that scales: all of them ring."""
    image = Image.new("L", (side, side), "white")
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(0)
    for x, y, across, down in rng.integers((0, 0, -80, -80), (side, side, 80, 80), (count, 4)):
        draw.line((x, y, x + across, y + down), fill="black")
    return image


PICTURES = ["astronaut.png", "hubble_deep_field.jpg", "exif/portrait_1.jpg", "many", "strokes"]


def picture_of(photographs: Path, name: str, side: int) -> Image.Image:
    made = {"many": lambda: of_many(photographs, side), "strokes": lambda: strokes(side)}
    return made.get(name, lambda: large_photograph(photographs, name, side))()


def as_jpeg(picture: Image.Image, form: str, quality: int) -> bytes:
    if form == "grey":
        return encoded(picture.convert("L"), "JPEG", quality=quality)
    return encoded(picture.convert("RGB"), "JPEG", quality=quality, subsampling=form)


FULL = (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("form", "quality", "shrunk"),
    [
        ("grey", 92, (1, 1, 2, 2)),
        ("grey", 90, FULL),
        ("4:4:4", 95, FULL),
        ("4:2:0", 95, FULL),
    ],
)
@pytest.mark.parametrize("name", PICTURES)
def test_large_jpegs_stay_within_one_level_of_all_their_pixels(
    photographs: Path, name: str, form: str, quality: int, shrunk: tuple[int, ...]
) -> None:
    """At 13, 27, 38 and 76 pixels per output pixel; 12 and 48 megapixels have 13 and 27 for 224."""
    data = as_jpeg(picture_of(photographs, name, 1440), form, quality)
    whole = decode(data, SourcePolicy.untrusted())
    factors = []
    for side in (110, 54, 38, 19):
        wanted = at_side(side)
        stored = open_encoded(data, SourcePolicy.untrusted()).load(smallest_enough(wanted))
        factors.append(stored.shrunk)
        apart = levels(program_input(stored, wanted)) - reference_clip(whole, side, side)
        assert np.abs(apart).max() <= 1
    assert tuple(factors) == shrunk


@pytest.mark.parametrize(
    ("form", "name", "side", "shrunk"),
    [
        pytest.param("4:4:4", "many", 110, 4, id="few pixels left"),
        pytest.param("4:2:0", "many", 66, 2, id="few samples of colour"),
        pytest.param("4:4:4", "red and blue", 38, 2, id="strong colours"),
        pytest.param("grey", "few strokes", 38, 2, id="coarse steps"),
    ],
)
def test_decoding_smaller_than_the_rule_allows_would_show(
    photographs: Path, form: str, name: str, side: int, shrunk: int
) -> None:
    pictures = {
        "many": lambda: of_many(photographs, 1440),
        "few strokes": lambda: strokes(1440, 3000),
        "red and blue": lambda: ImageOps.colorize(strokes(1440), black="red", white="blue"),
    }
    data = as_jpeg(pictures[name](), form, 90 if form != "grey" else 60)
    expected = reference_clip(decode(data, SourcePolicy.untrusted()), side, side)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (1440 // shrunk, 1440 // shrunk))
        image.load()
        stored = Stored(image, (1440, 1440), shrunk=shrunk)
        assert np.abs(levels(program_input(stored, at_side(side))) - expected).max() > 1


def test_every_pixel_of_a_jpeg_is_decoded_where_the_mode_does_not_antialias() -> None:
    data = encoded(drawn(900, 890).convert("L"), "JPEG", quality=95)
    small = RNE_PREPROCESSING.model_copy(update={"width": 20, "height": 20})
    policy = SourcePolicy.untrusted()
    assert open_encoded(data, policy).load(smallest_enough(small)).shrunk == 1


@pytest.mark.parametrize("scene", ["landscape", "portrait"])
def test_promise_30_the_exif_photographs_come_out_upright(photographs: Path, scene: str) -> None:
    policy = SourcePolicy.trusted()
    tensors = []
    for number in range(1, 9):
        data = (photographs / "exif" / f"{scene}_{number}.jpg").read_bytes()
        rgb = decode(data, policy)
        with Image.open(io.BytesIO(data)) as image:
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(rgb, upright)
        tensor = preprocess(rgb, CLIP_PREPROCESSING)[0]
        tensor[:, 70:154, 70:154] = 0  # each photograph has its own number written there
        tensors.append(tensor.ravel())
    for other in tensors[1:]:
        norms = np.linalg.norm(tensors[0]) * np.linalg.norm(other)
        assert tensors[0] @ other / norms >= 0.9999


def test_layouts_hold_the_same_values() -> None:
    rgb = noise(224, 224)
    affine: dict[str, object] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    planes = RNE_PREPROCESSING.model_copy(update=affine)
    patches = planes.model_copy(update={"layout": "patches", "patch_size": 32})
    expected = ((rgb / 255 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.4)).astype(np.float32)
    chw = preprocess(rgb, planes)
    rows = preprocess(rgb, patches)
    assert np.allclose(chw[0], expected.transpose(2, 0, 1), atol=1e-6)
    grid = expected.reshape(7, 32, 7, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1, 49, 3072)
    assert np.allclose(rows, grid, atol=1e-6)
    for out, wanted in ((chw, planes), (rows, patches)):
        assert out.shape == wanted.input_shape
        assert out.dtype == np.float32
        assert out.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_another_shape_or_dtype_is_refused_with_both_named(array: np.ndarray) -> None:
    with pytest.raises(InvalidUserInput, match=r"dtype .* and shape .*uint8") as caught:
        preprocess(array, RNE_PREPROCESSING)
    assert str(array.shape) in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"std": (1.0, 0.0, 1.0)}, {"scale": float("nan")}, {"shortest_edge": 256}],
)
def test_preprocessing_that_cannot_work_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        Preprocessing(**(RNE_PREPROCESSING.model_dump() | fields))
