"""The image tower, rewritten to run fast on XNNPACK."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from aioembed.export.clip.blocks import BlockShape, Projection, make_blocks, make_norm
from aioembed.export.clip.shapes import VisionShape
from aioembed.export.clip.weights import Affine, Tensors, centred, linear

__all__ = ["VisionTower"]


class VisionTower(nn.Module):
    """CLIP's image encoder over patches.

    Args:
        tensors: The checkpoint.
        shape: Sizes of the encoder.
        block: What all blocks share.
        mean: Per channel, folded into the patch embedding.
        std: Per channel, folded into the patch embedding.
    """

    offsets: Tensor

    def __init__(
        self,
        tensors: Tensors,
        shape: VisionShape,
        block: BlockShape,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        model = tensors.below("vision_model")
        weight, offsets = _embeddings(model.below("embeddings"), mean, std)
        if block.norm == "bn":
            weight, offsets = centred(weight, 0), centred(offsets, 1)
        self.width = shape.width
        self.token_count = shape.patches + 1
        self.patches = linear(Affine(weight, weight.new_zeros(shape.width)), bias=False)
        self.register_buffer("offsets", offsets.float())
        self.pre_norm = PreNorm(model.below("pre_layrnorm"), block)
        self.blocks = make_blocks(model, block, shape.layers)
        self.project = Projection(
            model.below("post_layernorm"), tensors["visual_projection.weight"], block
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed images.

        Args:
            patches: float32 `(batch, patches, 3 * patch_size ** 2)`, values 0..1.

        Returns:
            float32 `(batch, embedding_dim)`, rows of length 1.
        """
        x = F.pad(self.patches(patches), (0, 0, 1, 0)) + self.offsets
        x = self.pre_norm(x.view(-1, self.width))
        for block in self.blocks:
            x = block(x, self.token_count)
        vectors: Tensor = self.project(x)
        return vectors


class PreNorm(nn.Module):
    """The layer norm before the first block; its scale and shift enter the residual stream.

    In the form `bn` the rows that come in have mean zero, and so have those that go out.
    """

    mean: Tensor

    def __init__(self, tensors: Tensors, block: BlockShape) -> None:
        super().__init__()
        self.norm = make_norm(block.norm, block.width, block.eps)
        self.width = block.width
        self.centre = block.norm == "bn"
        self.scale = nn.Parameter(tensors["weight"].float(), requires_grad=False)
        self.shift = nn.Parameter(tensors["bias"].float(), requires_grad=False)
        self.register_buffer("mean", torch.full((1, block.width, 1), 1.0 / block.width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows `(batch * tokens, width)`."""
        x = self.norm(x) * self.scale + self.shift
        if not self.centre:
            return x
        return x - torch.bmm(x.view(1, -1, self.width), self.mean).view(-1, 1)


def _embeddings(
    tensors: Tensors, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Return the patch embedding as a matrix, and what is added to each token.

    The matrix takes a patch in the order kernel row, kernel column, channel, in values 0..1: the
    normalisation of the pixels is folded into it. Its bias is added with the positions; the class
    token, which has no patch, is nothing but what is added to it.
    """
    kernel = tensors["patch_embedding.weight"] / kernel_like(std)
    bias = -(kernel * kernel_like(mean)).sum((1, 2, 3))
    offsets = tensors["position_embedding.weight"].clone()
    offsets[0] += tensors["class_embedding"]
    offsets[1:] += bias
    return kernel.permute(0, 2, 3, 1).flatten(1), offsets


def kernel_like(values: tuple[float, ...]) -> Tensor:
    """Return values per channel in the layout of a kernel."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
