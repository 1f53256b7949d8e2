"""The world in which the pages' snippets run: files, small models, and no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import aioembed
from aioembed import CLIP_PREPROCESSING, ModelSpec
from aioembed.images import fetching

_FIXTURES = Path(__file__).resolve().parents[1] / "text" / "fixtures"
_IMAGES = ("cat", "dog")
_PHOTOGRAPHS = Path(aioembed.__file__).parent / "data" / "photographs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with every file that a page names."""
    for seed, name in enumerate(_IMAGES):
        blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(blocks).resize((80, 60), Image.Resampling.NEAREST)
        for form in ("jpg", "png"):
            picture.save(tmp_path / f"{name}.{form}")
    for place in ("text.pte", "models/text.pte"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(_FIXTURES / "padded_text.pte", tmp_path / place)
    for place in ("tokenizer.json", "tokenizers/tokenizer.json"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(_FIXTURES / "tokenizer.json", tmp_path / place)
    for place in ("image.pte", "model.pte"):
        shutil.copy(_FIXTURES / "image.pte", tmp_path / place)
    for photograph in _PHOTOGRAPHS.glob("*.jpg"):
        if not (tmp_path / photograph.name).exists():
            shutil.copy(photograph, tmp_path)
    (tmp_path / "photographs").mkdir()
    shutil.copy(tmp_path / "cat.jpg", tmp_path / "photographs" / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models of one space in the place of CLIP's."""
    image = ModelSpec(name="image", source=str(_FIXTURES / "image.pte"), modality="image")
    text = ModelSpec(
        name="text",
        source=str(_FIXTURES / "padded_text.pte"),
        modality="text",
        preprocessing=CLIP_PREPROCESSING,
    )
    monkeypatch.setattr(aioembed, "CLIP_VIT_BASE_PATCH32_IMAGE", image)
    monkeypatch.setattr(aioembed, "CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED", image)
    monkeypatch.setattr(aioembed, "CLIP_VIT_BASE_PATCH32_TEXT", text)


@pytest.fixture
def example_org(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public host that serves the folder's files by their names, whatever it is called."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = folder / Path(request.url.path).name
        return httpx.Response(200, content=path.read_bytes())

    def transport(policy: aioembed.SourcePolicy, **_: object) -> httpx.MockTransport:
        return httpx.MockTransport(answer)

    monkeypatch.setattr(fetching, "PolicyTransport", transport)
