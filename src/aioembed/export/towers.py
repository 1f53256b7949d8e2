"""A checkpoint's towers as modules: the rewritten ones, and transformers' own to hold them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from aioembed.errors import CheckpointError
from aioembed.export.blocks import (
    Affine,
    BlockForm,
    CentredNorm,
    Dynamic,
    FeedForward,
    NormForm,
    Projection,
    Tensors,
    centred,
    linear,
    make_blocks,
    make_norm,
    mean_over,
)
from aioembed.export.checkpoint import Checkpoint
from aioembed.export.families import TextShape, Tower, VisionShape

__all__ = ["AttentionPool", "build_tower", "reference"]

_MASKED = -1e9
"""Added to the scores of tokens that are not to be seen; -inf is more than kernels promise."""
_ROWS = 4096
"""Rows of a token table that are converted at a time."""


def build_tower(
    checkpoint: Checkpoint,
    shape: VisionShape | TextShape,
    *,
    norm: NormForm,
    dynamic: Dynamic,
    table: torch.dtype = torch.float32,
) -> ImageTower | TextTower:
    """Rewrite a tower.

    Args:
        checkpoint: It is read only; the module has its own tensors.
        shape: Of the tower.
        norm: Form of the norms.
        dynamic: Which axis of the program varies.
        table: Of the token embeddings: float32, int16 or int8.
    """
    form = BlockForm(shape, norm, dynamic)
    if isinstance(shape, TextShape):
        return TextTower(checkpoint.tensors, shape, form, table=table).eval()
    return ImageTower(checkpoint.tensors, shape, form).eval()


def _unit(vectors: Tensor, ones: Tensor) -> Tensor:
    """Divide rows by their lengths; the sum is a batched product, as the quantiser leaves those."""
    power = torch.bmm((vectors * vectors).view(1, -1, vectors.shape[-1]), ones).view(-1, 1)
    return vectors * torch.rsqrt(power)


class ImageTower(nn.Module):
    """An image encoder over patches.

    Args:
        source: The checkpoint's tensors.
        shape: Sizes of the encoder.
        form: Of the blocks.
    """

    offsets: Tensor
    ones: Tensor

    def __init__(self, source: Mapping[str, Tensor], shape: VisionShape, form: BlockForm) -> None:
        super().__init__()
        tensors = Tensors(source, shape.names)
        weight, offsets = _embeddings(tensors, shape)
        if form.centre:
            weight, offsets = centred(weight, 0), centred(offsets, 1)
        self.width = shape.width
        self.prefix = shape.prefix
        self.token_count = shape.prefix + shape.patches
        self.patches = linear(Affine(weight, weight.new_zeros(shape.width)), bias=False)
        self.register_buffer("offsets", offsets.float())
        self.pre_norm = PreNorm(tensors, form) if "pre_norm" in tensors else None
        self.blocks = make_blocks(source, form, pool_first=shape.pooling == "first")
        self.mean = MeanPool(shape) if shape.pooling == "mean" else None
        pools = shape.pooling == "attention"
        self.project = AttentionPool(tensors, shape, form) if pools else Projection(tensors, form)
        self.register_buffer("ones", torch.ones(1, shape.embedding_dim, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Embed images.

        Args:
            patches: float32 `(batch, patches, 3 * patch_size ** 2)`, values 0..1.

        Returns:
            float32 `(batch, embedding_dim)`, rows of length 1.
        """
        x = self.patches(patches)
        if self.prefix:
            x = F.pad(x, (0, 0, self.prefix, 0))
        x = (x + self.offsets).view(-1, self.width)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x, self.token_count)
        y = self.project(x)
        if self.mean is not None:
            y = self.mean(y)
        return _unit(y, self.ones)


def _embeddings(tensors: Tensors, shape: VisionShape) -> tuple[Tensor, Tensor]:
    """Return the patch embedding as a matrix, and what is added to each token.

    The matrix takes a patch in the order kernel row, kernel column, channel, in values 0..1: the
    normalisation of the pixels is folded into it. Its bias is added with the positions; class and
    register tokens, which have no patch, are nothing but what is added to them.
    """
    affine = tensors.affine("patch")
    kernel = affine.weight / _kernel_like(shape.std)
    bias = affine.bias - (kernel * _kernel_like(shape.mean)).sum((1, 2, 3))
    positions = tensors["positions"]
    first = positions[: "class" in tensors]
    patches = _interpolated(positions[len(first) :], shape) + bias
    before = [first + tensors["class"]] if len(first) else []
    if "registers" in tensors:
        before.append(tensors["registers"].view(-1, shape.width))
    return kernel.permute(0, 2, 3, 1).flatten(1), torch.cat([*before, patches])


def _interpolated(positions: Tensor, shape: VisionShape) -> Tensor:
    """Return the patches' positions for the size of the program's images, as transformers does."""
    was, wanted = (size // shape.patch_size for size in (shape.trained_size, shape.image_size))
    if was == wanted:
        return positions
    grid = positions.float().view(1, was, was, -1).permute(0, 3, 1, 2)
    antialias = bool(shape.antialias)
    resized = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=antialias)
    return resized.permute(0, 2, 3, 1).reshape(-1, shape.width).double()


def _kernel_like(values: tuple[float, ...]) -> Tensor:
    """Return values per channel in the layout of a kernel."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


class PreNorm(nn.Module):
    """The layer norm before the first block; its scale and shift enter the residual stream.

    In the form `bn` the rows that come in have mean zero, and so have those that go out.
    """

    mean: Tensor

    def __init__(self, tensors: Tensors, form: BlockForm) -> None:
        super().__init__()
        self.width = form.shape.width
        self.norm = make_norm(form.norm, self.width, form.shape.eps)
        self.centre = form.centre
        scale, shift = tensors.norm("pre_norm")
        self.scale = nn.Parameter(scale.float(), requires_grad=False)
        self.shift = nn.Parameter(shift.float(), requires_grad=False)
        self.register_buffer("mean", mean_over(self.width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows `(batch * tokens, width)`."""
        x = self.norm(x) * self.scale + self.shift
        if not self.centre:
            return x
        return x - torch.bmm(x.view(1, -1, self.width), self.mean).view(-1, 1)


class MeanPool(nn.Module):
    """The mean over the patches of each image."""

    weights: Tensor

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        weights = torch.full((shape.prefix + shape.patches,), 1.0 / shape.patches)
        weights[: shape.prefix] = 0
        self.width = shape.width
        self.register_buffer("weights", weights.view(1, -1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Turn rows `(batch * tokens, width)` into `(batch, width)`."""
        tokens = self.weights.shape[1]
        columns = x.view(-1, tokens, self.width).permute(0, 2, 1).contiguous()
        return torch.bmm(columns.view(1, -1, tokens), self.weights).view(-1, self.width)


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query attends to all tokens, and a feed-forward layer follows.

    The query is constant, so the scores are one small linear of the tokens: of head `h`,
    `q_h . (K_h x + b_h)` is `(K_h^T q_h) . x` and a constant, which the softmax does not see. What
    a head then mixes are the tokens themselves: `sum_t p_t (V_h x_t + b_h)` is
    `V_h (sum_t p_t x_t) + b_h`. So neither keys nor values are made for each token.
    """

    values: Tensor
    mean: Tensor

    def __init__(self, tensors: Tensors, shape: VisionShape, form: BlockForm) -> None:
        super().__init__()
        width, heads = shape.width, shape.heads
        self.width, self.heads, self.tokens = width, heads, shape.prefix + shape.patches
        name = tensors.names["pool.inputs"]
        packed = Affine(*(tensors.source[f"{name}_{x}"].double() for x in ("weight", "bias")))
        scale, shift = tensors.norm("norm")
        q, k, v = packed.split(3)
        query = (q.weight @ tensors["pool.probe"].view(-1) + q.bias) * (width // heads) ** -0.5
        keys = (k.weight * query.unsqueeze(1)).view(heads, -1, width).sum(1)
        v = v.after(scale, shift)
        out = tensors.affine("pool.out")
        self.norm = make_norm(form.norm, width, shape.eps)
        self.scores = linear(Affine(keys * scale, keys.new_zeros(heads)), bias=False)
        mixers = v.weight.view(heads, -1, width).transpose(1, 2).float().contiguous()
        self.register_buffer("values", mixers)
        self.out = linear(Affine(out.weight, out.bias + out.weight @ v.bias))
        self.inner_norm = CentredNorm(width, shape.eps)
        self.register_buffer("mean", mean_over(width))
        self.feed_forward = FeedForward(
            [tensors.affine("pool.fc1").after(*tensors.norm("pool.norm"))],
            tensors.affine("pool.fc2"),
            shape.activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map rows `(batch * tokens, width)` to `(batch, width)`."""
        x = self.norm(x)
        scores = self.scores(x).view(-1, self.tokens, self.heads).permute(0, 2, 1).contiguous()
        mixed = torch.bmm(torch.softmax(scores, -1), x.view(-1, self.tokens, self.width))
        of_heads = torch.bmm(mixed.permute(1, 0, 2), self.values)
        y = self.out(of_heads.permute(1, 0, 2).contiguous().view(-1, self.width))
        middle = torch.bmm(y.view(1, -1, self.width), self.mean).view(-1, 1)
        added: Tensor = y + self.feed_forward(self.inner_norm(y - middle))
        return added


class TextTower(nn.Module):
    """A text encoder over the token ids of one text.

    CLIP's attention is causal and the end of the text is pooled, so no token behind that
    matters: the program takes the text alone, without padding and without a mask. SigLIP's reads
    padded texts of one length, all of whose tokens see each other, and pools the last one. Inside,
    tokens run from the last to the first: the mask of n tokens is then the corner of a larger one,
    and the token that is pooled has a fixed place.

    Args:
        source: The checkpoint's tensors.
        shape: Sizes of the encoder.
        form: Of the blocks.
        table: Of the token embeddings, as for `TokenTable`.
    """

    positions: Tensor
    mask: Tensor | None
    ones: Tensor

    def __init__(
        self,
        source: Mapping[str, Tensor],
        shape: TextShape,
        form: BlockForm,
        *,
        table: torch.dtype,
    ) -> None:
        super().__init__()
        tensors = Tensors(source, shape.names)
        positions = tensors["positions"]
        if form.centre:
            positions = centred(positions, 1)
        self.table = TokenTable(source[shape.names["table"]], form, table)
        # one longer than the longest text: torch.export treats the slice of a whole specially
        self.register_buffer("positions", F.pad(positions.float(), (0, 0, 0, 1)))
        mask = None
        if shape.end_of_text is not None:
            size = shape.context_length + 1
            allowed = torch.ones(size, size, dtype=torch.bool).triu()
            mask = torch.where(allowed, 0.0, _MASKED).unsqueeze(0)
        self.register_buffer("mask", mask)
        self.blocks = make_blocks(source, form, pool_first=True)
        self.project = Projection(tensors, form)
        self.register_buffer("ones", torch.ones(1, shape.embedding_dim, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Embed one text.

        Args:
            ids: int64 `(1, tokens)`; of CLIP from the start-of-text token to the first
                end-of-text token, of SigLIP padded to the context length.

        Returns:
            float32 `(1, embedding_dim)`, of length 1.
        """
        tokens = ids.shape[1]
        x = self.table(ids.view(-1)) + self.positions[:tokens]
        x = x.flip(0)
        mask = None if self.mask is None else self.mask[:, :tokens, :tokens]
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            x = block(x, tokens, None if index == last else mask)
        return _unit(self.project(x), self.ones)


class TokenTable(nn.Module):
    """Token embeddings in float32, or in int16 or int8 with one scale per token.

    They are converted a few rows at a time: some vocabularies take most of a checkpoint.
    """

    weight: Tensor
    scale: Tensor | None

    def __init__(self, table: Tensor, form: BlockForm, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(table.shape, dtype=dtype)
        scales = None if dtype.is_floating_point else torch.empty(len(table), 1)
        for start in range(0, len(table), _ROWS):
            rows = table[start : start + _ROWS].detach().double()
            if form.centre:
                rows = centred(rows, 1)
            if scales is not None:
                tiny = torch.finfo(torch.float32).tiny
                scale = rows.abs().amax(1, keepdim=True).clamp_min(tiny) / torch.iinfo(dtype).max
                scales[start : start + _ROWS] = scale.float()
                rows = (rows / scale).round()
            weight[start : start + _ROWS] = rows.to(weight.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scales)

    def forward(self, ids: Tensor) -> Tensor:
        """Look `(tokens,)` up."""
        rows = F.embedding(ids, self.weight)
        return rows if self.scale is None else rows.float() * F.embedding(ids, self.scale)


def reference(
    checkpoint: Checkpoint,
    shape: VisionShape | TextShape,
    samples: Sequence[tuple[Tensor, ...]],
) -> Tensor:
    """Return transformers' own vectors of a program's inputs, made of length 1.

    Args:
        checkpoint: Which transformers reads on its own.
        shape: Of the tower.
        samples: Inputs of the tower's program.

    Returns:
        float32 `(samples, embedding_dim)`.
    """
    tower: Tower = "image" if isinstance(shape, VisionShape) else "text"
    model = _transformers_model(checkpoint, tower)
    rows = []
    with torch.no_grad():
        for (given,) in samples:
            output = model(_pixels(given, shape) if isinstance(shape, VisionShape) else given)
            if isinstance(shape, VisionShape) and shape.pooling == "mean":
                rows.append(output.last_hidden_state[:, shape.prefix :].mean(1))
            else:
                rows.append(getattr(output, checkpoint.family.output[tower]))
    return F.normalize(torch.cat(rows), dim=-1)


def _transformers_model(checkpoint: Checkpoint, tower: Tower) -> nn.Module:
    """Return transformers' tower, read from the checkpoint's folder."""
    import transformers

    kind: Any = getattr(transformers, checkpoint.family.models[tower])
    model, loaded = kind.from_pretrained(
        checkpoint.folder, dtype=torch.float32, output_loading_info=True
    )
    if loaded["missing_keys"]:
        msg = f"transformers finds no {', '.join(sorted(loaded['missing_keys'])[:4])}"
        raise CheckpointError(f"{msg} in {checkpoint.folder}")
    module: nn.Module = model.eval()
    return module


def _pixels(patches: Tensor, shape: VisionShape) -> Tensor:
    """Return the normalised pixels `(batch, 3, height, width)` that patches are of."""
    side, patch = shape.image_size // shape.patch_size, shape.patch_size
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (shape.mean, shape.std))
    grid = patches.view(-1, side, side, patch, patch, 3).permute(0, 5, 1, 3, 2, 4)
    return (grid.reshape(-1, 3, side * patch, side * patch) - mean) / std
