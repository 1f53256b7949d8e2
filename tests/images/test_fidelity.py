"""The pixels are the ones the model was meant to see."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from aioembed.errors import InvalidConfig, InvalidUserInput
from aioembed.images import SourcePolicy, decode, preprocess
from aioembed.images.decode import Stored
from aioembed.images.preprocess import program_input
from aioembed.images.resample import turn_upright
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING, Preprocessing

from .support import drawn

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
    from_image = program_input(Stored(image), preprocessing)
    assert np.array_equal(from_image, preprocess(np.asarray(image), preprocessing))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("preprocessing", [RNE_PREPROCESSING, CLIP_PREPROCESSING])
def test_turning_after_resampling_equals_turning_before(
    orientation: int, preprocessing: Preprocessing
) -> None:
    image = drawn(321, 200)
    upright = turn_upright(np.asarray(image), orientation)
    got = program_input(Stored(image, orientation), preprocessing)
    assert np.abs(levels(got) - levels(preprocess(upright, preprocessing))).max() <= 1


@pytest.mark.parametrize("scene", ["landscape", "portrait"])
def test_the_exif_photographs_come_out_upright(photographs: Path, scene: str) -> None:
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
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), bool),
        np.zeros((1, 4, 4, 3), np.uint8),
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
