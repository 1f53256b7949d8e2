"""`aioembed describe`: what a program takes, and saving what is missing beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .conftest import Invoke

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "plain_nchw.pte"


def test_missing_preprocessing_is_reported_saved_and_used(invoke: Invoke, tmp_path: Path) -> None:
    path = shutil.copy(PROGRAM, tmp_path / "mine.pte")
    before = json.loads(invoke("describe", path, "--format", "json").stdout)
    assert before["inputs"] == ["float32 (1, 3, 32, 32)"]
    assert "--preprocessing" in before["missing"]
    saving = invoke("describe", path, "--preprocessing", "imagenet", "--save")
    assert saving.exit_code == 0
    assert "mine.json" in saving.stderr
    after = json.loads(invoke("describe", path, "--format", "json").stdout)
    assert after["missing"] is None
    assert (after["embedding_dim"], after["preprocessing"]["height"]) == (16, 32)


def test_saving_nothing_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    path = shutil.copy(PROGRAM, tmp_path / "mine.pte")
    result = invoke("describe", path, "--save")
    assert result.exit_code == 2
    assert "--preprocessing" in result.stderr


def test_the_embedded_model_lacks_nothing(invoke: Invoke) -> None:
    said = json.loads(invoke("describe", "efficientnet-lite0", "--format", "json").stdout)
    assert said["embedding_dim"] == 1280
    assert said["metadata"]["name"] == "efficientnet-lite0"
    assert said["missing"] is None
