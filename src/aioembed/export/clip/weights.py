"""Tensors of a CLIP checkpoint, folded into the linears of the rewritten graph.

Every function here is an identity on the network's output up to rounding; sums and products are
taken in float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Affine", "Tensors", "centred", "linear"]


@dataclass(frozen=True)
class Affine:
    """A map `x -> weight @ x + bias`, in float64.

    Attributes:
        weight: `(out, in)`.
        bias: `(out,)`.
    """

    weight: Tensor
    bias: Tensor

    def after(self, scale: Tensor, shift: Tensor) -> Self:
        """Absorb an elementwise `scale * x + shift` that comes before this map."""
        return type(self)(self.weight * scale, self.bias + self.weight @ shift)

    def times(self, factor: float) -> Self:
        """Scale the output."""
        return type(self)(self.weight * factor, self.bias * factor)

    def times_input(self, factor: float) -> Self:
        """Scale the input."""
        return type(self)(self.weight * factor, self.bias)

    def centred(self) -> Self:
        """Subtract from every output the mean over the outputs."""
        return type(self)(centred(self.weight, 0), centred(self.bias, 0))

    @classmethod
    def stack(cls, *maps: Affine) -> Self:
        """Join maps of one input into one map, their outputs one after the other."""
        return cls(torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps]))


def centred(tensor: Tensor, dim: int) -> Tensor:
    """Subtract the mean along `dim`."""
    return tensor - tensor.mean(dim, keepdim=True)


def linear(affine: Affine, *, bias: bool = True) -> nn.Linear:
    """Make the float32 module of a map."""
    rows, columns = affine.weight.shape
    module = nn.Linear(columns, rows, bias=bias, device="meta")
    module.weight = nn.Parameter(affine.weight.float().contiguous(), requires_grad=False)
    if bias:
        module.bias = nn.Parameter(affine.bias.float(), requires_grad=False)
    return module


@dataclass(frozen=True)
class Tensors:
    """The tensors below one prefix of a checkpoint, read as float64.

    Attributes:
        source: Reads a tensor by its full name.
        prefix: Put before every name, such as `vision_model.encoder.layers.0.`.
    """

    source: Callable[[str], Tensor]
    prefix: str = ""

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Self:
        """Read from a mapping."""
        return cls(state.__getitem__)

    def below(self, name: str) -> Self:
        """Descend by one or more names."""
        return type(self)(self.source, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.source(self.prefix + name).detach().double()

    def affine(self, name: str) -> Affine:
        """Read `name.weight` and `name.bias`."""
        part = self.below(name)
        return Affine(part["weight"], part["bias"])
