"""The rewritten parts that all towers are made of, and how a checkpoint's tensors fold into them.

Every fold is an identity on the network's output up to rounding; sums and products are taken in
float64 and rounded to float32 once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from aioembed.export.families import Activation, TowerShape

__all__ = [
    "Affine",
    "AttentionHalf",
    "Block",
    "BlockForm",
    "CentredNorm",
    "Dynamic",
    "FeedForward",
    "FeedForwardHalf",
    "NormForm",
    "Projection",
    "Tensors",
    "centred",
    "linear",
    "make_blocks",
    "make_norm",
    "mean_over",
]

NormForm = Literal["ln", "bn"]
Dynamic = Literal["tokens", "batch"] | None

_TANH = 2 * (2 / torch.pi) ** 0.5
_FACTORS: dict[Activation, float] = {
    "quick_gelu": 1.702,
    "gelu_tanh": (_TANH * 0.044715) ** (1 / 3),
}
"""What goes into the weights around an activation, so that less is left to compute."""


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

    def times(self, factor: float | Tensor) -> Self:
        """Scale the output, as a whole or each value by its own factor."""
        column = factor.unsqueeze(1) if isinstance(factor, Tensor) else factor
        return type(self)(self.weight * column, self.bias * factor)

    def times_input(self, factor: float) -> Self:
        """Scale the input."""
        return type(self)(self.weight * factor, self.bias)

    def centred(self) -> Self:
        """Subtract from every output the mean over the outputs."""
        return type(self)(centred(self.weight, 0), centred(self.bias, 0))

    def split(self, parts: int) -> list[Self]:
        """Cut the outputs into equal parts."""
        pairs = zip(self.weight.chunk(parts), self.bias.chunk(parts), strict=True)
        return [type(self)(*pair) for pair in pairs]

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
    """The tensors of a tower or of one of its blocks, read as float64.

    Attributes:
        source: All tensors of the checkpoint.
        names: Name in the checkpoint of each part.
    """

    source: Mapping[str, Tensor]
    names: Mapping[str, str]

    def __contains__(self, part: str) -> bool:
        """Whether there is such a part."""
        return part in self.names

    def __getitem__(self, part: str) -> Tensor:
        """Read a part that is one tensor, its last two axes alone where it has more."""
        return _squeezed(self.source[self.names[part]].detach()).double()

    def weight(self, part: str) -> Tensor:
        """Read the weight of a part."""
        return self.source[f"{self.names[part]}.weight"].detach().double()

    def affine(self, part: str) -> Affine:
        """Read a linear; where it has no bias, that is zero."""
        weight, bias = self.weight(part), self.source.get(f"{self.names[part]}.bias")
        zeros = weight.new_zeros(len(weight))
        return Affine(weight, zeros if bias is None else bias.detach().double())

    def norm(self, part: str) -> tuple[Tensor, Tensor]:
        """Read the scale and the shift of a norm."""
        affine = self.affine(part)
        return affine.weight, affine.bias


def _squeezed(tensor: Tensor) -> Tensor:
    """Drop the axes of length 1 in front of a matrix or vector."""
    while tensor.ndim > 1 and len(tensor) == 1:
        tensor = tensor[0]
    return tensor


@dataclass(frozen=True)
class BlockForm:
    """In which form the blocks of a tower are written.

    Attributes:
        shape: Sizes of the tower.
        norm: Form of the norms.
        dynamic: Which axis varies: none (batch 1), the tokens (batch 1), or the batch.
    """

    shape: TowerShape
    norm: NormForm
    dynamic: Dynamic = None

    @property
    def centre(self) -> bool:
        """Whether what is added to the residual stream has mean zero."""
        return self.norm == "bn"


def mean_over(width: int) -> Tensor:
    """Return what a batched product with gives the mean of rows: `(1, width, 1)`."""
    return torch.full((1, width, 1), 1.0 / width)


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
        self.register_buffer("mean", mean_over(width))
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
        tensors: Of the block; the norm before is folded in.
        form: Of the block. Where no axis varies, queries, keys and values come from one linear
            and are cut by slices; slices of a dynamic shape would leave the delegate.
        first_only: Query with the first token of each sequence only.
    """

    def __init__(self, tensors: Tensors, form: BlockForm, *, first_only: bool) -> None:
        super().__init__()
        norm = tensors.norm("norm1")
        q, k, v = (tensors.affine(name).after(*norm) for name in "qkv")
        self.width = form.shape.width
        self.heads = form.shape.heads
        self.head_width = self.width // self.heads
        q = q.times(self.head_width**-0.5)
        if form.dynamic:
            maps, self.parts = [q, k, v], [1, 1, 1]
        elif first_only:
            maps, self.parts = [q, Affine.stack(k, v)], [1, 2]
        else:
            maps, self.parts = [Affine.stack(q, k, v)], [3]
        self.inputs = nn.ModuleList(linear(m) for m in maps)
        self.batched = form.dynamic == "batch"
        self.out = linear(_added(tensors, "out", "scale1", form))
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


def _added(tensors: Tensors, part: str, scale: str, form: BlockForm) -> Affine:
    """Return the linear whose output is added to the residual stream, its LayerScale folded in."""
    affine = tensors.affine(part)
    if scale in tensors:
        affine = affine.times(tensors[scale])
    return affine.centred() if form.centre else affine


class FeedForward(nn.Module):
    """The linears of a block and the activation between them.

    What can be is folded into the linears. `fc2(h * sigmoid(1.702 * h))`, the quick GELU of
    `h = fc1(x)`, is `fc2 / 1.702 (g * sigmoid(g))` with `g = 1.702 * fc1(x)`. The GELU by tanh,
    `h / 2 * (1 + tanh(sqrt(2 / pi) * (h + a * h ** 3)))`, is `h * sigmoid(c * (h + a * h ** 3))`
    with `c = 2 * sqrt(2 / pi)`, and so `g / f * sigmoid((g * g + c / f) * g)` with `g = f * h` and
    `f = (c * a) ** (1 / 3)`. It is written out: XNNPACK's lowering takes the GELU by erf for both.

    Args:
        inputs: What the activation is of; two maps for `swiglu`, the gate first.
        out: Maps back to the residual stream.
        activation: Between them.

    Attributes:
        scale: Per hidden channel, set where `out` is balanced for int8.
    """

    scale: Tensor | None

    def __init__(self, inputs: list[Affine], out: Affine, activation: Activation) -> None:
        super().__init__()
        factor = _FACTORS.get(activation, 1.0)
        self.inputs = nn.ModuleList(linear(m.times(factor)) for m in inputs)
        self.out = linear(out.times_input(1 / factor))
        self.activation = activation
        self.offset = _TANH / factor
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised rows `(rows, width)`."""
        # All before the activation: the partitioner keeps int8 linears of one input together, and
        # does not merge what lies between two of them.
        h, *gated = [part(x) for part in self.inputs]
        if self.activation == "gelu":
            h = F.gelu(h)
        elif self.activation == "gelu_tanh":
            h = h * torch.sigmoid((h * h + self.offset) * h)
        else:
            h = h * torch.sigmoid(h)
        for up in gated:
            h = h * up
        y: Tensor = self.out(h if self.scale is None else h * self.scale)
        return y


class AttentionHalf(nn.Module):
    """The first half of a block: what attention over the normalised rows adds to them."""

    def __init__(self, tensors: Tensors, form: BlockForm, *, first_only: bool) -> None:
        super().__init__()
        self.norm = make_norm(form.norm, form.shape.width, form.shape.eps)
        self.attention = Attention(tensors, form, first_only=first_only)
        self.first_only = first_only
        self.batched = form.dynamic == "batch"

    def forward(self, x: Tensor, tokens: int, mask: Tensor | None) -> Tensor:
        """Transform the rows; with `first_only`, return the first token of each sequence."""
        normed = self.norm(x)
        first = normed
        if self.first_only:
            x, first = self._first(x, tokens), self._first(normed, tokens)
        y: Tensor = x + self.attention(normed, first, tokens, mask)
        return y

    def _first(self, x: Tensor, tokens: int) -> Tensor:
        """Return the row of the first token of each sequence."""
        if self.batched:
            return x.view(-1, tokens * x.shape[1])[:, : x.shape[1]]
        return x[:1]


class FeedForwardHalf(nn.Module):
    """The second half of a block: what the feed-forward layer adds to the rows."""

    def __init__(self, tensors: Tensors, form: BlockForm) -> None:
        super().__init__()
        shape = form.shape
        self.norm = make_norm(form.norm, shape.width, shape.eps)
        norm = tensors.norm("norm2")
        if shape.activation == "swiglu":
            inputs = tensors.affine("gate_up").split(2)
        else:
            inputs = [tensors.affine("fc1")]
        self.feed_forward = FeedForward(
            [one.after(*norm) for one in inputs],
            _added(tensors, "fc2", "scale2", form),
            shape.activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform the rows."""
        y: Tensor = x + self.feed_forward(self.norm(x))
        return y


class Block(nn.Module):
    """One pre-norm transformer block over rows `(batch * tokens, width)`.

    Args:
        tensors: Of the block.
        form: What all blocks of the tower share.
        first_only: Return the first token of each sequence only: the last block of a tower that
            pools that token.
    """

    def __init__(self, tensors: Tensors, form: BlockForm, *, first_only: bool) -> None:
        super().__init__()
        self.first = AttentionHalf(tensors, form, first_only=first_only)
        self.second = FeedForwardHalf(tensors, form)

    def forward(self, x: Tensor, tokens: int, mask: Tensor | None = None) -> Tensor:
        """Transform the rows."""
        y: Tensor = self.second(self.first(x, tokens, mask))
        return y


def make_blocks(
    source: Mapping[str, Tensor], form: BlockForm, *, pool_first: bool
) -> nn.ModuleList:
    """Make a tower's blocks; where the first token is pooled, the last one returns that only."""
    shape = form.shape
    names = [
        {part: name.format(index) for part, name in shape.block_names.items()}
        for index in range(shape.layers)
    ]
    return nn.ModuleList(
        Block(Tensors(source, own), form, first_only=pool_first and index == shape.layers - 1)
        for index, own in enumerate(names)
    )


class Projection(nn.Module):
    """The last norm, folded into the projection where there is one."""

    scale: Tensor
    shift: Tensor

    def __init__(self, tensors: Tensors, form: BlockForm) -> None:
        super().__init__()
        self.norm = make_norm(form.norm, form.shape.width, form.shape.eps)
        scale, shift = tensors.norm("norm")
        self.linear = None
        if "projection" in tensors:
            self.linear = linear(tensors.affine("projection").after(scale, shift))
        else:
            self.register_buffer("scale", scale.float())
            self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled rows `(batch, width)` to `(batch, embedding_dim)`."""
        x = self.norm(x)
        y: Tensor = x * self.scale + self.shift if self.linear is None else self.linear(x)
        return y
