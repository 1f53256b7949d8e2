"""The text tower, rewritten to run fast on XNNPACK at any length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from aioembed.export.clip.blocks import BlockShape, Projection, make_blocks
from aioembed.export.clip.shapes import TextShape
from aioembed.export.clip.weights import Tensors, centred

__all__ = ["MASKED", "Table", "TextTower"]

MASKED = -1e9
"""Added to the scores of tokens that are not to be seen; -inf is more than kernels promise."""


class TextTower(nn.Module):
    """CLIP's text encoder over the token ids of one text.

    Attention is causal and the last token is pooled, so no token after the end of the text
    matters: the program takes the text alone, without padding and without a mask. Inside, tokens
    run from the last to the first. The mask of n tokens is then the corner of a larger one, and
    the token that is pooled has a fixed place.

    Args:
        tensors: The checkpoint.
        shape: Sizes of the encoder.
        block: What all blocks share.
        quantized_table: Keep the token embeddings as int8 with one scale per token.
    """

    positions: Tensor
    mask: Tensor

    def __init__(
        self, tensors: Tensors, shape: TextShape, block: BlockShape, *, quantized_table: bool
    ) -> None:
        super().__init__()
        model = tensors.below("text_model")
        table = model["embeddings.token_embedding.weight"]
        positions = model["embeddings.position_embedding.weight"]
        if block.norm == "bn":
            table, positions = centred(table, 1), centred(positions, 1)
        self.width = shape.width
        self.table = QuantizedTable(table) if quantized_table else Table(table)
        # one longer than the longest text: torch.export treats the slice of a whole specially
        self.register_buffer("positions", F.pad(positions.float(), (0, 0, 0, 1)))
        size = shape.context_length + 1
        allowed = torch.ones(size, size, dtype=torch.bool).triu()
        self.register_buffer("mask", torch.where(allowed, 0.0, MASKED).unsqueeze(0))
        self.blocks = make_blocks(model, block, shape.layers)
        self.project = Projection(
            model.below("final_layer_norm"), tensors["text_projection.weight"], block
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Embed one text.

        Args:
            ids: int64 `(1, tokens)`, from the start-of-text token to the first end-of-text token.

        Returns:
            float32 `(1, embedding_dim)`, of length 1.
        """
        tokens = ids.shape[1]
        x = self.table(ids.view(-1)) + self.positions[:tokens]
        x = x.flip(0)
        mask = self.mask[:, :tokens, :tokens]
        for block in self.blocks:
            x = block(x, tokens, None if block.first_only else mask)
        vectors: Tensor = self.project(x)
        return vectors


class Table(nn.Module):
    """Token embeddings in float32."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())

    def forward(self, ids: Tensor) -> Tensor:
        """Look `(tokens,)` up."""
        return F.embedding(ids, self.weight)


class QuantizedTable(nn.Module):
    """Token embeddings in int8, one scale per token."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.float())

    def forward(self, ids: Tensor) -> Tensor:
        """Look `(tokens,)` up."""
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.scale)
