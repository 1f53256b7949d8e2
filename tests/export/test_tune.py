"""Linears that stay float32 in an int8 program, because rounding them would cost too much."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from aioembed.export.lowering import lower
from aioembed.export.tune import exempt_linears, imitated_int8

pytestmark = pytest.mark.export


def two_linears(*, outlier: float) -> torch.nn.Sequential:
    """Two linears; an outlier in every row of the second takes all its int8 levels."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    with torch.no_grad():
        first.weight[0] = 0
        second.weight[:, 0] += outlier
    return torch.nn.Sequential(first, second).eval()


def samples_of(module: torch.nn.Module) -> tuple[list[tuple[torch.Tensor]], torch.Tensor]:
    samples = [(torch.randn(1, 64),) for _ in range(20)]
    with torch.no_grad():
        vectors = torch.cat([module(*sample) for sample in samples])
    return samples, torch.nn.functional.normalize(vectors, dim=-1)


class Normalised(torch.nn.Sequential):
    """A sequence whose output has length 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(super().forward(x), dim=-1)  # type: ignore[no-untyped-call]


def test_plain_weights_are_all_rounded() -> None:
    module = Normalised(*two_linears(outlier=0))
    assert exempt_linears(module, *samples_of(module)) == ()


@pytest.mark.parametrize("outlier", [10, 30, 100])
def test_the_linear_that_loses_most_is_kept_and_none_is_changed(outlier: float) -> None:
    """Each is tried on some of the samples, so that what it loses there is less than on all."""
    module = Normalised(*two_linears(outlier=outlier))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert exempt_linears(module, *samples_of(module)) == ("1",)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_simulation_rounds_inside_and_restores_afterwards() -> None:
    module = two_linears(outlier=0)
    (x,), *_ = samples_of(module)[0]
    with torch.no_grad():
        exact = module(x)
        first = module[0]
        assert isinstance(first, torch.nn.Linear)
        with imitated_int8([first]):
            assert not torch.equal(module(x), exact)
        assert torch.equal(module(x), exact)


def test_an_exempt_linear_keeps_its_four_bytes_a_weight() -> None:
    module = two_linears(outlier=0)
    example = (torch.randn(1, 64),)
    sizes = {
        exempt: lower(module, example, precision="int8", exempt=exempt).size_bytes
        for exempt in ((), ("0",), ("0", "1"))
    }
    assert sizes["0",] - sizes[()] > 2 * 64 * 64
    assert sizes["0", "1"] - sizes["0",] > 2 * 64 * 64
