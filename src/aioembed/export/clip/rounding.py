"""An imitation, in eager mode, of what int8 linears of the runtime round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["imitated_int8"]

_LEVELS = 127
_SPAN = 255


@contextmanager
def imitated_int8(linears: Sequence[nn.Linear]) -> Iterator[None]:
    """Round weights per output, and activations per row, as the runtime's int8 linears do.

    Args:
        linears: Rounded inside the context, as they were behind it.
    """
    before = [linear.weight.data for linear in linears]
    for linear in linears:
        scale = linear.weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LEVELS
        linear.weight.data = (linear.weight / scale).round() * scale
    handles = [linear.register_forward_pre_hook(_rounded) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.data = weight


def _rounded(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round an input to 256 levels between its row's extremes, zero among them."""
    x = inputs[0]
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / _SPAN).clamp_min(1e-30)
    zero = (-low / scale).round()
    return (((x / scale + zero).round().clamp(0, _SPAN) - zero) * scale,)
