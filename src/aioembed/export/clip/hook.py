"""Programs to the contract of the React Native hook's own files, to stand in for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from aioembed.export.clip.blocks import BlockShape, make_blocks, make_norm
from aioembed.export.clip.checkpoint import Checkpoint, locate
from aioembed.export.clip.shapes import TextShape, VisionShape
from aioembed.export.clip.text import MASKED, Table
from aioembed.export.clip.towers import build_tower
from aioembed.export.clip.weights import Affine, Tensors, linear
from aioembed.export.lowering import Lowered, lower
from aioembed.models import Precision

__all__ = ["hook_image_program", "hook_text_program"]


def hook_image_program(weights: str | Path, *, precision: Precision = "fp32") -> Lowered:
    """Build an image program as the hook has it, without metadata.

    Its `forward` takes float32 `(1, 3, image_size, image_size)`, RGB, values 0..1, and returns
    float32 `(1, embedding_dim)` of length 1. Mean and std are inside.

    Args:
        weights: A checkpoint's folder or hub id.
        precision: Of the linears.

    Raises:
        CheckpointError: As `export_clip`.
        MissingExtra: As `export_clip`.
    """
    checkpoint = Checkpoint.open(locate(weights))
    shape = checkpoint.image_tower()
    tower = build_tower(checkpoint, "image", norm="ln", dynamic=None)
    example = torch.zeros(1, 3, shape.image_size, shape.image_size)
    return lower(_FromPixels(tower, shape), (example,), precision=precision)


def hook_text_program(weights: str | Path, *, precision: Precision = "fp32") -> Lowered:
    """Build a text program as the hook has it, without metadata.

    Its `forward` takes int64 token ids and their attention mask (1 where the id is not 0), both
    `(1, tokens)` of any length up to the context length, and returns float32
    `(1, embedding_dim)` of length 1: the token with the highest id is pooled.

    Args:
        weights: A checkpoint's folder or hub id.
        precision: Of the linears.

    Raises:
        CheckpointError: As `export_clip`.
        MissingExtra: As `export_clip`.
    """
    checkpoint = Checkpoint.open(locate(weights))
    shape = checkpoint.text_tower()
    module = _MaskedText(Tensors.of(checkpoint.tensors), shape)
    ids = torch.full((1, shape.context_length // 2), 1, dtype=torch.int64)
    tokens = torch.export.Dim("tokens", min=2, max=shape.context_length)
    return lower(
        module,
        (ids, torch.ones_like(ids)),
        dynamic_shapes=({1: tokens}, {1: tokens}),
        precision=precision,
    )


class _FromPixels(nn.Module):
    """An image tower that cuts the patches itself."""

    def __init__(self, tower: nn.Module, shape: VisionShape) -> None:
        super().__init__()
        self.tower = tower
        self.patch = shape.patch_size
        self.side = shape.image_size // shape.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed `(1, 3, height, width)`."""
        side, patch = self.side, self.patch
        grid = pixels.view(3, side, patch, side, patch).permute(1, 3, 2, 4, 0)
        vectors: Tensor = self.tower(grid.reshape(1, side * side, 3 * patch * patch))
        return vectors


class _MaskedText(nn.Module):
    """A text tower with padding and a mask, tokens in their order."""

    positions: Tensor
    causal: Tensor

    def __init__(self, tensors: Tensors, shape: TextShape) -> None:
        super().__init__()
        block = BlockShape(
            width=shape.width,
            heads=shape.heads,
            eps=shape.eps,
            activation=shape.activation,
            norm="ln",
            dynamic="tokens",
        )
        model = tensors.below("text_model")
        size = shape.context_length + 1  # see TextTower
        positions = model["embeddings.position_embedding.weight"].float()
        allowed = torch.ones(size, size, dtype=torch.bool).tril()
        self.table = Table(model["embeddings.token_embedding.weight"])
        self.register_buffer("positions", nn.functional.pad(positions, (0, 0, 0, 1)))
        self.register_buffer("causal", torch.where(allowed, 0.0, MASKED).unsqueeze(0))
        self.blocks = make_blocks(model, block, shape.layers, pool_first=False)
        self.norm = make_norm("ln", shape.width, shape.eps)
        last = model.below("final_layer_norm")
        weight = tensors["text_projection.weight"]
        projection = Affine(weight, weight.new_zeros(len(weight)))
        self.project = linear(projection.after(last["weight"], last["bias"]))

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed one text: ids and mask `(1, tokens)`."""
        tokens = ids.shape[1]
        x = self.table(ids.view(-1)) + self.positions[:tokens]
        padding = (1.0 - attention_mask.float()) * MASKED
        mask = self.causal[:, :tokens, :tokens] + padding.unsqueeze(1)
        for block in self.blocks:
            x = block(x, tokens, mask)
        pooled = self.norm(x).index_select(0, ids.argmax(dim=-1))
        return nn.functional.normalize(self.project(pooled), dim=-1)
