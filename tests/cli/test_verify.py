"""`aioembed verify`: the photographs that ship, under each preprocessing a program may be for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal

from aioembed.cli.verify import CAPTIONS, judge_captions, judge_duplicates
from aioembed.testing import HubServer
from aioembed.testing.photographs import photographs

from ..programs import TINY_IMAGE_PROGRAM
from .conftest import Invoke

_ROOT = Path(__file__).resolve().parents[1]
PLAIN = _ROOT / "programs" / "plain_nchw.pte"
CLIP_IMAGE, CLIP_TEXT = (_ROOT / "text" / "fixtures" / f"{n}.pte" for n in ("image", "hook_text"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all, so that each program has its trial once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOEMBED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def lines(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.strip()]


def test_each_photograph_has_its_own_caption() -> None:
    assert sorted(CAPTIONS) == sorted(photographs())
    assert len(set(CAPTIONS.values())) == len(CAPTIONS)


def test_a_caption_counts_where_it_is_nearest_by_the_margin_to_the_next() -> None:
    pictures = np.eye(3, dtype=np.float32)
    captions = np.array([[1, 0, 0], [0, 0.5, 0.75], [0, 0, 1]], np.float32)
    score = judge_captions(pictures, captions)
    assert (score.found, score.total) == (3, 3)
    assert score.margin == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert judge_captions(pictures, captions[[1, 0, 2]]).found == 1


def test_a_near_duplicate_counts_where_its_own_picture_is_nearest() -> None:
    pictures = np.eye(3, dtype=np.float32)
    duplicates = np.stack([pictures, pictures[[1, 0, 2]]], axis=1)
    score = judge_duplicates(pictures, duplicates)
    assert (score.found, score.total) == (3 + 1, 6)
    assert score.margin == pytest.approx((1 - 1 / 3) / 2)
    assert not score.passes


def test_without_anything_that_says_it_the_preprocessing_that_fits_best_is_named(
    invoke: Invoke,
) -> None:
    result = invoke("verify", PLAIN)
    assert result.exit_code == 0
    named = lines(result.stdout)
    assert {row[0] for row in named[1:]} == {"rne", "rne-0.10.6", "clip", "imagenet"}
    assert named[1][-2:] == ["fits", "best"]
    assert f"passed, with the preprocessing {named[1][0]}" in result.stderr


def test_a_preprocessing_that_another_one_clearly_beats_does_not_pass(invoke: Invoke) -> None:
    result = invoke("verify", PLAIN, "--preprocessing", "rne")
    assert result.exit_code == 3
    assert lines(result.stdout)[1][0] == "rne"
    assert "fits clearly better than rne" in result.stderr
    assert invoke("verify", PLAIN, "--preprocessing", "imagenet").exit_code == 0


def test_a_model_of_a_hub_is_verified_by_its_captions(invoke: Invoke) -> None:
    """The tiny programs have random weights, so that no caption is found but by chance."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(HubServer()) as hub:
        url = hub.add("someone/tiny", "image.pte", CLIP_IMAGE.read_bytes())
        result = invoke("verify", url, "--text-model", CLIP_TEXT, "--compare", CLIP_IMAGE)
    assert result.exit_code == 3
    named = lines(result.stdout)
    assert named[0] == ["preprocessing", "nearest", "caption", "margin"]
    assert all(row[2:4] == ["of", "8"] for row in named[1:-1] if row[0].startswith("rne"))
    assert "1.0000 on average, 1.0000 at least" in result.stdout
    assert "are found: the model, or its preprocessing, is not what it should be" in result.stderr


def test_programs_that_differ_do_not_pass(invoke: Invoke, tmp_path: Path) -> None:
    other = shutil.copy(_ROOT / "programs" / "plain_nhwc.pte", tmp_path / "other.pte")
    same = invoke("verify", PLAIN, "--preprocessing", "imagenet", "--compare", other)
    assert "1.0000 on average" in same.stdout  # channels first and last, the same weights
    result = invoke("verify", PLAIN, "--compare", TINY_IMAGE_PROGRAM)
    assert result.exit_code == 2
    assert "16 and 512 values" in result.stderr


def test_a_text_model_of_another_checkpoint_is_a_usage_error(invoke: Invoke) -> None:
    result = invoke("verify", TINY_IMAGE_PROGRAM, "--text-model", CLIP_TEXT)
    assert result.exit_code == 2
    assert "another checkpoint" in result.stderr


def test_a_file_that_is_not_a_program_is_the_models_fault(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "page.pte"
    path.write_text("<html>")
    assert invoke("verify", path).exit_code == 3
