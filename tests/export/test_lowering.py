"""From a torch module to the bytes of a program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aioembed.errors import ExportError, InvalidConfig, MissingExtra
from aioembed.export.lowering import Delegation, Lowered, lower
from aioembed.models import METADATA_METHOD, ProgramMetadata
from aioembed.runtime import Program

if TYPE_CHECKING:
    import torch

METADATA = ProgramMetadata(
    name="tiny", modality="text", embedding_dim=32, normalized=False, weights_sha256="0", recipe="1"
)


@pytest.fixture(scope="module")
def linear() -> torch.nn.Module:
    pytest.importorskip("torch")
    pytest.importorskip("executorch.exir", exc_type=ImportError)
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(64, 32)


@pytest.mark.export
def test_a_lowered_program_carries_its_metadata_and_constants(
    linear: torch.nn.Module, tmp_path: Path
) -> None:
    import torch

    x = torch.ones(1, 64)
    path = tmp_path / "tiny.pte"
    lower(linear, (x,), metadata=METADATA, constant_methods={"layers": 3}).write(path)

    program = Program.load(path)
    constants = program.constants
    (output,) = program.run(x.numpy())
    program.close()

    assert ProgramMetadata.model_validate_json(str(constants[METADATA_METHOD])) == METADATA
    assert constants["layers"] == 3
    np.testing.assert_allclose(output, linear(x).detach().numpy(), atol=1e-5)


@pytest.mark.export
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lowering_twice_gives_the_same_bytes(linear: torch.nn.Module, precision: str) -> None:
    import torch

    first, second = (
        lower(linear, (torch.ones(1, 64),), metadata=METADATA, precision=precision)  # type: ignore[arg-type]
        for _ in range(2)
    )

    assert first == second
    assert first.delegation.calls == 1
    assert first.delegation.ops_outside == ()


@pytest.mark.export
def test_int8_programs_stay_close_to_fp32(linear: torch.nn.Module, tmp_path: Path) -> None:
    import torch

    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "int8.pte"
    lower(linear, (x,), precision="int8").write(path)

    program = Program.load(path)
    (output,) = program.run(x.numpy())
    program.close()

    expected = linear(x).detach().numpy()
    cosine = (output * expected).sum() / np.linalg.norm(output) / np.linalg.norm(expected)
    assert 0.999 < cosine < 0.9999999


@pytest.mark.export
def test_depthwise_convolutions_stay_fp32_in_an_int8_program(
    linear: torch.nn.Module, tmp_path: Path
) -> None:
    import torch

    convolution = torch.nn.Conv2d(8, 8, 3, groups=8).eval()
    picture = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "depthwise.pte"
    lower(convolution, (picture,), precision="int8").write(path)

    program = Program.load(path)
    (output,) = program.run(picture.numpy())
    program.close()

    np.testing.assert_allclose(output, convolution(picture).detach().numpy(), atol=1e-6)


@pytest.mark.export
def test_operators_that_xnnpack_does_not_take_are_listed() -> None:
    pytest.importorskip("torch")
    import torch

    lowered = lower(_error_function(), (torch.ones(4, 4),))

    assert lowered.delegation.calls == 1
    assert lowered.delegation.ops_outside == ("aten.erf.default",)


@pytest.mark.export
def test_an_axis_that_cannot_vary_is_a_clear_error() -> None:
    pytest.importorskip("torch")
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(3, 8) * 2

    axis = torch.export.Dim("batch", min=1, max=9)
    with pytest.raises(
        ExportError, match=r"Fixed cannot be lowered with these dynamic shapes: .*batch"
    ):
        lower(Fixed(), (torch.ones(3, 8),), dynamic_shapes=({0: axis},))


def test_the_metadatas_name_is_reserved() -> None:
    with pytest.raises(InvalidConfig, match=METADATA_METHOD):
        lower(None, (), metadata=METADATA, constant_methods={METADATA_METHOD: "x"})  # type: ignore[arg-type]


def test_without_torch_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtra, match=r"aioembed\[export\]"):
        lower(None, ())  # type: ignore[arg-type]


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"older and longer")

    Lowered([b"n", b"ew"], Delegation(1, ())).write(path)

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.mkdir()

    with pytest.raises(OSError, match="directory"):
        Lowered([b"n", b"ew"], Delegation(1, ())).write(path)

    assert list(tmp_path.iterdir()) == [path]


def _error_function() -> torch.nn.Module:
    import torch

    class ErrorFunction(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erf(x + x)

    return ErrorFunction()
