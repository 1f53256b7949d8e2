"""The page about text: every example runs as it stands, on the tiny models."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import aioembed
from aioembed import ModelSpec

_PAGE = Path(__file__).parents[2] / "docs" / "text.md"
_EXAMPLES = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def tiny_clip(padded_text: Path, image_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the tiny models in the place of CLIP's."""
    text = ModelSpec(name="text", source=str(padded_text), modality="text")
    image = ModelSpec(name="image", source=str(image_program), modality="image")
    monkeypatch.setattr(aioembed, "CLIP_VIT_BASE_PATCH32_TEXT", text)
    monkeypatch.setattr(aioembed, "CLIP_VIT_BASE_PATCH32_IMAGE", image)


@pytest.fixture
def folder(
    padded_text: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes the files that the examples name, in the working directory."""
    (tmp_path / "models").mkdir()
    shutil.copy(padded_text, tmp_path / "models" / "text.pte")
    (tmp_path / "tokenizers").mkdir()
    shutil.copy(tokenizer_file, tmp_path / "tokenizers")
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tiny_clip", "folder")
@pytest.mark.parametrize("example", _EXAMPLES)
def test_an_example_runs(example: str) -> None:
    exec(compile(example, str(_PAGE), "exec"), {"__name__": "__main__"})
