"""Programs from elsewhere: nothing is guessed, and what is said of them is believed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image

from aioembed import (
    CLIP_PREPROCESSING,
    IMAGENET_PREPROCESSING,
    RNE_PREPROCESSING,
    ImageEmbeddings,
    Preprocessing,
    cosine_similarity,
)
from aioembed import _probe as probing
from aioembed.errors import (
    InvalidConfig,
    InvalidProgram,
    ProbeIncomplete,
    UnknownPreprocessing,
    WrongDimensions,
)
from aioembed.images import preprocess

PROGRAMS = Path(__file__).parent / "programs"
PICTURE = np.asarray(Image.radial_gradient("L").rotate(30).resize((90, 60)).convert("RGB"))

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["plain_nchw", "plain_nhwc"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(PROGRAMS / f"{request.param}.pte", tmp_path / "mine.pte"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "cache"))


async def vector(program: Path, preprocessing: Preprocessing | str | None = None) -> np.ndarray:
    async with ImageEmbeddings(program, preprocessing=preprocessing) as model:
        return await model.forward(PICTURE)


async def test_a_program_that_says_nothing_is_an_error_that_lists_the_ways(program: Path) -> None:
    with pytest.raises(UnknownPreprocessing) as caught:
        await vector(program)
    for way in ("preprocessing=", "mine.json", "preprocessor_config.json", "rne", "describe"):
        assert way in str(caught.value)


async def test_a_preset_takes_the_size_and_the_layout_of_the_program(program: Path) -> None:
    by_name = await vector(program, "imagenet")
    assert by_name.shape == (16,)
    size = {"height": 32, "width": 32, "shortest_edge": 37}
    exact = IMAGENET_PREPROCESSING.model_copy(update=size)
    other = await vector(PROGRAMS / "plain_nchw.pte", exact)
    assert cosine_similarity(by_name, other) > 0.99999
    assert cosine_similarity(by_name, await vector(program, "rne")) < 0.999


async def test_a_sidecar_and_a_hub_config_are_read_in_this_order(program: Path) -> None:
    size = {"height": 224, "width": 224}
    config = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    program.with_name("preprocessor_config.json").write_text(json.dumps(config))
    from_hub = await vector(program)
    assert from_hub.shape == (16,)
    program.with_suffix(".json").write_text(json.dumps({"preprocessing": {**size}}))
    with pytest.raises(InvalidConfig, match=r"mine\.json.*resize"):
        await vector(program)


async def test_a_sidecar_that_does_not_fit_names_both_shapes(program: Path) -> None:
    said = {"format": 1, "preprocessing": RNE_PREPROCESSING.model_dump()}
    program.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(WrongDimensions, match=r"224.*32"):
        await vector(program)
    program.with_suffix(".json").write_text(json.dumps({**said, "format": 9}))
    with pytest.raises(InvalidConfig, match=r"mine\.json.*format"):
        await vector(program)


async def test_what_is_no_preset_and_no_file_is_refused(program: Path) -> None:
    with pytest.raises(InvalidConfig, match="imagnet"):
        await vector(program, "imagnet")
    with pytest.raises(InvalidConfig, match=r"absent\.json"):
        await vector(program, "absent.json")


async def test_a_program_that_says_the_same_of_everything_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(PROGRAMS / "constant.pte", tmp_path / "constant.pte"))
    with pytest.raises(InvalidProgram, match="same vector for two different pictures"):
        await vector(path, "rne")


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "did not end"),
        ("#!/bin/sh\nkill -9 $$\n", "memory ran out"),
        ("no interpreter", "AIOEMBED_PYTHON"),
    ],
)
async def test_a_trial_that_could_not_be_finished_says_why_and_keeps_the_file(
    program: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    python = program.with_name("python")
    python.write_text(script)
    python.chmod(0o755)
    monkeypatch.setenv("AIOEMBED_PYTHON", str(python))
    with pytest.raises(ProbeIncomplete, match=words):
        await probing.probe(program, seconds=1)
    assert await anyio.Path(program).exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 448),
        ("width", 448),
        ("resize", "letterbox"),
        ("interpolation", "bicubic"),
        ("antialias", True),
        ("scale", 1 / 127.5),
        ("mean", (0.5, 0.5, 0.5)),
        ("std", (1.0, 1.0, 0.5)),
        ("program_mean", (0.1, 0.0, 0.0)),
        ("program_std", (0.5, 1.0, 1.0)),
    ],
)
def test_whatever_changes_the_values_changes_the_fingerprint(field: str, value: object) -> None:
    changed = RNE_PREPROCESSING.model_copy(update={field: value})
    assert changed.pixels_id != RNE_PREPROCESSING.pixels_id


def test_folded_and_unfolded_forms_of_the_same_arithmetic_agree() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    outside = CLIP_PREPROCESSING.model_copy(update={"mean": mean, "std": std})
    inside = CLIP_PREPROCESSING.model_copy(update={"program_mean": mean, "program_std": std})
    levels = {
        "scale": 1.0,
        "mean": tuple(255 * one for one in mean),
        "std": tuple(255 * one for one in std),
    }
    of_levels = CLIP_PREPROCESSING.model_copy(update=levels)
    assert outside.pixels_id == inside.pixels_id == of_levels.pixels_id
    np.testing.assert_allclose(
        preprocess(PICTURE, outside), preprocess(PICTURE, of_levels), atol=1e-5
    )


def test_the_layout_does_not_decide_the_space() -> None:
    nhwc = RNE_PREPROCESSING.model_copy(update={"layout": "nhwc"})
    assert nhwc.pixels_id == RNE_PREPROCESSING.pixels_id
    np.testing.assert_array_equal(
        preprocess(PICTURE, nhwc).transpose(0, 3, 1, 2), preprocess(PICTURE, RNE_PREPROCESSING)
    )
