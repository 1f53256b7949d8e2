"""The GIST module and the program that was built from it."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from aioembed.errors import MissingExtra
from aioembed.export.lowering import Lowered
from aioembed.images import preprocess
from aioembed.testing.scenes import draw_scenes, near_duplicates


@pytest.fixture(scope="module")
def gist() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("executorch.exir", exc_type=ImportError)
    from aioembed.export import gist as module

    return module


@pytest.fixture(scope="module")
def built(gist: ModuleType) -> Lowered:
    lowered = gist.build()
    assert isinstance(lowered, Lowered)
    return lowered


@pytest.mark.export
def test_the_shipped_program_computes_what_the_module_does(gist: ModuleType) -> None:
    """Values differ by float32 rounding only: sums of 27,648 terms, taken in another order."""
    images = [
        picture
        for scene in draw_scenes().values()
        for picture in (scene, *near_duplicates(scene).values())
    ]
    pixels = [preprocess(np.asarray(image), gist.GIST_PREPROCESSING) for image in images]
    noise = np.random.default_rng(1).random((4, 3, 96, 96), np.float32)
    flat = np.full((1, 3, 96, 96), 0.3, np.float32)

    with as_file(files("aioembed.models") / "gist_512.pte") as shipped:
        difference = gist.largest_difference(shipped, np.concatenate([*pixels, noise, flat]))

    print(f"largest difference: {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.export
def test_the_shipped_program_can_be_rebuilt(
    gist: ModuleType, built: Lowered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gist, "build", lambda: built)

    assert gist.main(["--check"]) == 0


@pytest.mark.export
def test_the_check_fails_on_another_program(
    gist: ModuleType, built: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.pte"
    with monkeypatch.context() as changed:
        changed.setattr(gist, "_FREQUENCY", 0.2)
        assert gist.main(["--out", str(path)]) == 0

    monkeypatch.setattr(gist, "build", lambda: built)
    assert gist.main(["--out", str(path), "--check"]) == 1


@pytest.mark.export
def test_the_whole_descriptor_runs_in_one_delegate_call(built: Lowered) -> None:
    """Outside is only the turn of the input to channels-last, which XNNPACK asks for."""
    assert built.delegation.calls == 1
    assert built.delegation.ops_outside == ("dim_order_ops._to_dim_order_copy.default",)


@pytest.mark.export
def test_filters_are_quadrature_pairs_that_ignore_constants(gist: ModuleType) -> None:
    filters = gist.gabor_filters(13, 8, 0.14)[:, 0]
    even, odd = filters[:8], filters[8:]

    np.testing.assert_allclose(filters.sum(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose((even * odd).sum(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(even, even[:, ::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(odd, -odd[:, ::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(even[4], even[0].T, atol=1e-12)


@pytest.mark.export
def test_a_grating_lights_up_the_values_of_its_orientation(gist: ModuleType) -> None:
    import torch

    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 0.14 * np.arange(96, dtype=np.float32))
    upright = torch.from_numpy(np.broadcast_to(wave, (1, 3, 96, 96)).copy())

    values = gist.Gist()(upright).numpy().reshape(4, 8, 16).mean(axis=2)

    assert values[0].argmax() == 0
    across = gist.Gist()(upright.transpose(2, 3)).numpy().reshape(4, 8, 16).mean(axis=2)
    assert across[0].argmax() == 4


def test_without_torch_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "aioembed.export.gist", raising=False)

    with pytest.raises(MissingExtra, match=r"aioembed\[export\]"):
        __import__("aioembed.export.gist")


def test_using_the_library_does_not_import_the_exporter() -> None:
    code = (
        "import aioembed, sys; print([m for m in sys.modules if m.startswith('aioembed.export')])"
    )
    done = subprocess.run(  # a fresh interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
