"""Sizes of CLIP's towers, and the tensors a checkpoint of that size has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Activation", "TextShape", "TowerShape", "VisionShape"]

Activation = Literal["quick_gelu", "gelu"]

_Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """What both towers have.

    Attributes:
        width: Of the residual stream.
        layers: Number of transformer blocks.
        heads: Number of attention heads.
        hidden: Width between the two linears of a block.
        eps: Of the norms.
        activation: Between the two linears.
        embedding_dim: Values per vector.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    eps: float
    activation: Activation
    embedding_dim: int


@dataclass(frozen=True, kw_only=True)
class VisionShape(TowerShape):
    """Sizes of an image tower.

    Attributes:
        image_size: Side of the square image in pixels.
        patch_size: Side of a square patch in pixels.
    """

    image_size: int
    patch_size: int

    @property
    def patches(self) -> int:
        """Patches per image."""
        return (self.image_size // self.patch_size) ** 2

    def tensors(self) -> _Shapes:
        """Iterate over the names and shapes of the tower's tensors."""
        below = "vision_model.embeddings."
        yield f"{below}class_embedding", (self.width,)
        yield f"{below}patch_embedding.weight", (self.width, 3, self.patch_size, self.patch_size)
        yield f"{below}position_embedding.weight", (self.patches + 1, self.width)
        yield from _norm("vision_model.pre_layrnorm", self.width)
        yield from _blocks("vision_model", self)
        yield from _norm("vision_model.post_layernorm", self.width)
        yield "visual_projection.weight", (self.embedding_dim, self.width)


@dataclass(frozen=True, kw_only=True)
class TextShape(TowerShape):
    """Sizes of a text tower.

    Attributes:
        vocabulary: Number of tokens.
        context_length: Most tokens of a text, special tokens included.
        end_of_text: The token that is pooled.
    """

    vocabulary: int
    context_length: int
    end_of_text: int

    def tensors(self) -> _Shapes:
        """Iterate over the names and shapes of the tower's tensors."""
        below = "text_model.embeddings."
        yield f"{below}token_embedding.weight", (self.vocabulary, self.width)
        yield f"{below}position_embedding.weight", (self.context_length, self.width)
        yield from _blocks("text_model", self)
        yield from _norm("text_model.final_layer_norm", self.width)
        yield "text_projection.weight", (self.embedding_dim, self.width)


def _norm(name: str, width: int) -> _Shapes:
    """Iterate over a layer norm's tensors."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, rows: int, columns: int) -> _Shapes:
    """Iterate over a linear's tensors."""
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _blocks(model: str, shape: TowerShape) -> _Shapes:
    """Iterate over the tensors of a tower's transformer blocks."""
    for index in range(shape.layers):
        layer = f"{model}.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", shape.width, shape.width)
        yield from _linear(f"{layer}.mlp.fc1", shape.hidden, shape.width)
        yield from _linear(f"{layer}.mlp.fc2", shape.width, shape.hidden)
        yield from _norm(f"{layer}.layer_norm1", shape.width)
        yield from _norm(f"{layer}.layer_norm2", shape.width)
