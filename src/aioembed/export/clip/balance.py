"""Balance activations against weights before int8, as SmoothQuant does.

Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models, 2023, equation 4 with a migration strength of 0.5.

The runtime quantises a linear's input with one scale per row, and its weights with one scale per
output. A channel that is much larger than the others spends the row's 8 bits on itself. Dividing
the channel and multiplying its weights leaves the product as it is. Divisors of a norm's output
go into the norm, those of the attention's values into the rows that make them, and only those in
front of `fc2` cost a product of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from aioembed.export.clip.blocks import Block, Projection

__all__ = ["balance"]

_STRENGTH = 0.5
_OUTLIER = 3.0


def balance(tower: nn.Module, samples: Iterable[tuple[Tensor, ...]]) -> int:
    """Balance every linear of a tower behind a norm, the attention or an activation.

    Args:
        tower: Changed in place; its output stays the same up to rounding.
        samples: Inputs to watch the activations on.

    Returns:
        The number of hidden layers whose channels were so uneven that a product was put in.
    """
    blocks = [module for module in tower.modules() if isinstance(module, Block)]
    ends = [module for module in tower.modules() if isinstance(module, Projection)]
    largest = _watch(tower, samples)
    products = 0
    with torch.no_grad():
        for block in blocks:
            inputs = [cast("nn.Linear", module) for module in block.attention.inputs]
            block.norm1.scale = _divide(inputs, largest)
            block.norm2.scale = _divide([block.feed_forward.fc1], largest)
            values, rows = block.attention.value_rows()
            factors = _divide([block.attention.out], largest)
            values.weight[rows] *= factors.unsqueeze(1)
            values.bias[rows] *= factors
            if _unevenness(largest[block.feed_forward.fc2]) > _OUTLIER:
                block.feed_forward.scale = _divide([block.feed_forward.fc2], largest)
                products += 1
        for end in ends:
            end.norm.scale = _divide([end.linear], largest)
    return products


def _watch(tower: nn.Module, samples: Iterable[tuple[Tensor, ...]]) -> dict[nn.Module, Tensor]:
    """Return, per linear, the largest magnitude of each channel of its input."""
    largest: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].abs().flatten(0, -2).amax(0)
        largest[module] = torch.maximum(largest.get(module, seen), seen)

    linears = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(note) for module in linears]
    try:
        with torch.no_grad():
            for sample in samples:
                tower(*sample)
    finally:
        for handle in handles:
            handle.remove()
    return largest


def _divide(linears: list[nn.Linear], largest: dict[nn.Module, Tensor]) -> Tensor:
    """Multiply the weights of linears that share an input, and return what it is multiplied by."""
    activation = torch.stack([largest[module] for module in linears]).amax(0)
    weight = torch.stack([module.weight.abs().amax(0) for module in linears]).amax(0)
    tiny = torch.finfo(torch.float32).tiny
    divisors = activation.clamp_min(tiny) ** _STRENGTH / weight.clamp_min(tiny) ** (1 - _STRENGTH)
    usable = (activation > 0) & (weight > 0)
    middle = divisors[usable].log().mean().exp() if bool(usable.any()) else divisors.new_ones(())
    divisors = torch.where(usable, divisors / middle, 1.0)
    for module in linears:
        module.weight *= divisors
    return 1 / divisors


def _unevenness(values: Tensor) -> float:
    """Return how much larger the largest channel is than the median one."""
    median = float(values.median())
    return float(values.amax()) / median if median else 1.0
