"""The rewritten transformer block that both towers are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from aioembed.export.clip.shapes import Activation
from aioembed.export.clip.weights import Affine, Tensors, linear

__all__ = [
    "Block",
    "BlockShape",
    "Dynamic",
    "NormForm",
    "Projection",
    "make_blocks",
    "make_norm",
]

NormForm = Literal["ln", "bn"]
Dynamic = Literal["tokens", "batch"] | None

_QUICK_GELU = 1.702


@dataclass(frozen=True)
class BlockShape:
    """What all blocks of a tower share.

    Attributes:
        width: Of the residual stream.
        heads: Number of attention heads.
        eps: Of the norms.
        activation: Between the two linears.
        norm: Form of the norms.
        dynamic: Which axis varies: none (batch 1), the tokens (batch 1), or the batch.
    """

    width: int
    heads: int
    eps: float
    activation: Activation
    norm: NormForm
    dynamic: Dynamic = None


class LayerNorm(nn.Module):
    """Layer normalisation without shift, by the runtime's own kernel.

    Attributes:
        scale: Per channel, set where the linears behind it are balanced for int8.
    """

    scale: Tensor | None

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the rows of `(rows, width)`."""
        return F.layer_norm(x, (self.width,), self.scale, None, self.eps)


class CentredNorm(nn.Module):
    """Layer normalisation of rows whose mean is zero already, all of it inside the delegate.

    The mean square is a batched matrix product: as a linear the quantiser would take it.

    Attributes:
        scale: Per channel, set where the linears behind it are balanced for int8.
    """

    mean: Tensor
    scale: Tensor | None

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.register_buffer("mean", torch.full((1, width, 1), 1.0 / width))
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the rows of `(rows, width)`."""
        power = torch.bmm((x * x).view(1, -1, self.width), self.mean).view(-1, 1)
        normed = x * torch.rsqrt(power + self.eps)
        return normed if self.scale is None else normed * self.scale


Norm = LayerNorm | CentredNorm


def make_norm(form: NormForm, width: int, eps: float) -> Norm:
    """Make the norm of a form."""
    return CentredNorm(width, eps) if form == "bn" else LayerNorm(width, eps)


class Attention(nn.Module):
    """Self-attention over `(batch * tokens, width)`, queries, keys and values of all heads.

    Args:
        tensors: Below `self_attn`.
        scale: Of the norm before, folded in.
        shift: Of the norm before, folded in.
        heads: Number of heads.
        dynamic: Which axis varies. Where none does, queries, keys and values come from one
            linear and are cut by slices; slices of a dynamic shape would leave the delegate.
        centre: Centre the output, for the form `bn`.
        first_only: Query with the first token of each sequence only.
    """

    def __init__(
        self,
        tensors: Tensors,
        scale: Tensor,
        shift: Tensor,
        *,
        heads: int,
        dynamic: Dynamic,
        centre: bool,
        first_only: bool,
    ) -> None:
        super().__init__()
        q, k, v = (tensors.affine(f"{x}_proj").after(scale, shift) for x in "qkv")
        self.width = q.weight.shape[0]
        self.heads = heads
        self.head_width = self.width // heads
        q = q.times(self.head_width**-0.5)
        if dynamic:
            maps, self.parts = [q, k, v], [1, 1, 1]
        elif first_only:
            maps, self.parts = [q, Affine.stack(k, v)], [1, 2]
        else:
            maps, self.parts = [Affine.stack(q, k, v)], [3]
        self.inputs = nn.ModuleList(linear(m) for m in maps)
        self.batched = dynamic == "batch"
        out = tensors.affine("out_proj")
        self.out = linear(out.centred() if centre else out)
        self.first_only = first_only

    def value_rows(self) -> tuple[nn.Linear, slice]:
        """Return the linear that makes the values, and its rows that do."""
        module = cast("nn.Linear", self.inputs[-1])
        return module, slice(module.out_features - self.width, None)

    def forward(self, x: Tensor, first: Tensor, tokens: int, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: Normalised rows `(batch * tokens, width)`.
            first: The rows that query: `x`, or the first of each sequence.
            tokens: Per sequence; read where the batch is dynamic.
            mask: Added to the scores, `(1, tokens, tokens)`, or None.
        """
        q, k, v = self._project(x, first)
        queries = 1 if self.first_only else tokens
        scores = torch.bmm(self._split(q, queries), self._split(k, tokens).transpose(1, 2))
        if mask is not None:
            scores = scores + mask
        mixed = torch.bmm(torch.softmax(scores, -1), self._split(v, tokens))
        y: Tensor = self.out(self._join(mixed, queries))
        return y

    def _project(self, x: Tensor, first: Tensor) -> list[Tensor]:
        projected: list[Tensor] = []
        for index, (module, parts) in enumerate(zip(self.inputs, self.parts, strict=True)):
            y = module(first if index == 0 else x)
            w = self.width
            projected += [y[:, i * w : (i + 1) * w] for i in range(parts)] if parts > 1 else [y]
        return projected

    def _split(self, y: Tensor, tokens: int) -> Tensor:
        """Turn rows into `(batch * heads, tokens, head_width)`."""
        if self.batched:
            y = y.view(-1, tokens, self.heads, self.head_width).permute(0, 2, 1, 3)
            return y.contiguous().view(-1, tokens, self.head_width)
        return y.view(-1, self.heads, self.head_width).permute(1, 0, 2)

    def _join(self, y: Tensor, tokens: int) -> Tensor:
        """Turn `(batch * heads, tokens, head_width)` back into rows."""
        if self.batched:
            y = y.view(-1, self.heads, tokens, self.head_width).permute(0, 2, 1, 3)
        else:
            y = y.permute(1, 0, 2)
        return y.contiguous().view(-1, self.width)


class FeedForward(nn.Module):
    """The two linears of a block; quick_gelu's factor is folded into both.

    `fc2(h * sigmoid(1.702 * h))` with `h = fc1(x)` is `fc2 / 1.702 (g * sigmoid(g))` with
    `g = 1.702 * fc1(x)`.

    Args:
        tensors: Below `mlp`.
        scale: Of the norm before, folded in.
        shift: Of the norm before, folded in.
        activation: The checkpoint's.
        centre: Centre the output, for the form `bn`.

    Attributes:
        scale: Per hidden channel, set where `fc2` is balanced for int8.
    """

    scale: Tensor | None

    def __init__(
        self,
        tensors: Tensors,
        scale: Tensor,
        shift: Tensor,
        *,
        activation: Activation,
        centre: bool,
    ) -> None:
        super().__init__()
        fc1 = tensors.affine("fc1").after(scale, shift)
        fc2 = tensors.affine("fc2")
        self.quick = activation == "quick_gelu"
        if self.quick:
            fc1, fc2 = fc1.times(_QUICK_GELU), fc2.times_input(1 / _QUICK_GELU)
        self.fc1 = linear(fc1)
        self.fc2 = linear(fc2.centred() if centre else fc2)
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised rows `(rows, width)`."""
        h: Tensor = self.fc1(x)
        h = h * torch.sigmoid(h) if self.quick else F.gelu(h)
        y: Tensor = self.fc2(h if self.scale is None else h * self.scale)
        return y


class Block(nn.Module):
    """One pre-norm transformer block over rows `(batch * tokens, width)`.

    Args:
        tensors: Below `encoder.layers.N`.
        shape: What all blocks of the tower share.
        first_only: Return the first token of each sequence only: the last block of a tower that
            pools that token.
    """

    def __init__(self, tensors: Tensors, shape: BlockShape, *, first_only: bool) -> None:
        super().__init__()
        centre = shape.norm == "bn"
        norms = [tensors.below(f"layer_norm{i}") for i in (1, 2)]
        affines = [(norm["weight"], norm["bias"]) for norm in norms]
        self.norm1 = make_norm(shape.norm, shape.width, shape.eps)
        self.norm2 = make_norm(shape.norm, shape.width, shape.eps)
        self.attention = Attention(
            tensors.below("self_attn"),
            *affines[0],
            heads=shape.heads,
            dynamic=shape.dynamic,
            centre=centre,
            first_only=first_only,
        )
        self.feed_forward = FeedForward(
            tensors.below("mlp"), *affines[1], activation=shape.activation, centre=centre
        )
        self.first_only = first_only
        self.batched = shape.dynamic == "batch"

    def forward(self, x: Tensor, tokens: int, mask: Tensor | None = None) -> Tensor:
        """Transform the rows."""
        normed = self.norm1(x)
        first = normed
        if self.first_only:
            x, first = self._first(x, tokens), self._first(normed, tokens)
        x = x + self.attention(normed, first, tokens, mask)
        y: Tensor = x + self.feed_forward(self.norm2(x))
        return y

    def _first(self, x: Tensor, tokens: int) -> Tensor:
        """Return the row of the first token of each sequence."""
        if self.batched:
            return x.view(-1, tokens * x.shape[1])[:, : x.shape[1]]
        return x[:1]


def make_blocks(
    tensors: Tensors, shape: BlockShape, count: int, *, pool_first: bool = True
) -> nn.ModuleList:
    """Make a tower's blocks; where the first token is pooled, the last one returns that only."""
    layers = tensors.below("encoder.layers")
    return nn.ModuleList(
        Block(layers.below(str(i)), shape, first_only=pool_first and i == count - 1)
        for i in range(count)
    )


class Projection(nn.Module):
    """The last norm, folded into the projection, and the division by the vector's length."""

    ones: Tensor

    def __init__(self, norm: Tensors, weight: Tensor, shape: BlockShape) -> None:
        super().__init__()
        self.norm = make_norm(shape.norm, shape.width, shape.eps)
        projection = Affine(weight, weight.new_zeros(len(weight)))
        self.linear = linear(projection.after(norm["weight"], norm["bias"]))
        self.width = len(weight)
        self.register_buffer("ones", torch.ones(1, self.width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled rows `(batch, width)` to vectors of length 1."""
        y: Tensor = self.linear(self.norm(x))
        power = torch.bmm((y * y).view(1, -1, self.width), self.ones).view(-1, 1)
        return y * torch.rsqrt(power)
