"""A checkpoint's towers as modules: the rewritten ones, and transformers' own to hold them to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from aioembed.export.clip.blocks import BlockShape, Dynamic, NormForm
from aioembed.export.clip.checkpoint import Checkpoint
from aioembed.export.clip.shapes import TowerShape
from aioembed.export.clip.text import TextTower
from aioembed.export.clip.vision import VisionTower
from aioembed.export.clip.weights import Tensors

__all__ = ["Tower", "build_tower", "reference"]

Tower = Literal["image", "text"]


def build_tower(
    checkpoint: Checkpoint,
    tower: Tower,
    *,
    norm: NormForm,
    dynamic: Dynamic,
    quantized_table: bool = False,
) -> VisionTower | TextTower:
    """Rewrite a tower.

    Args:
        checkpoint: It is read only; the module has tensors of its own.
        tower: Which one.
        norm: Form of the norms.
        dynamic: Which axis of the program varies.
        quantized_table: Keep the token embeddings as int8.

    Raises:
        CheckpointError: The checkpoint has no such tower.
    """
    tensors = Tensors.of(checkpoint.tensors)
    if tower == "text":
        text = checkpoint.text_tower()
        block = _block_shape(text, norm, dynamic)
        return TextTower(tensors, text, block, quantized_table=quantized_table).eval()
    image = checkpoint.image_tower()
    block = _block_shape(image, norm, dynamic)
    return VisionTower(tensors, image, block, mean=checkpoint.mean, std=checkpoint.std).eval()


def reference(
    checkpoint: Checkpoint, tower: Tower, samples: Sequence[tuple[Tensor, ...]]
) -> Tensor:
    """Return transformers' own vectors of a program's inputs, made of length 1.

    Args:
        checkpoint: Whose tensors are used where they lie.
        tower: Which one.
        samples: Inputs of the tower's program.

    Returns:
        float32 `(samples, embedding_dim)`.
    """
    model = _transformers_model(checkpoint, tower)
    with torch.no_grad():
        if tower == "image":
            pixels = _pixels(checkpoint)
            rows = [model(pixels(*sample)).image_embeds for sample in samples]
        else:
            rows = [model(*sample).text_embeds for sample in samples]
    return nn.functional.normalize(torch.cat(rows), dim=-1)


def _block_shape(shape: TowerShape, norm: NormForm, dynamic: Dynamic) -> BlockShape:
    return BlockShape(
        width=shape.width,
        heads=shape.heads,
        eps=shape.eps,
        activation=shape.activation,
        norm=norm,
        dynamic=dynamic,
    )


def _transformers_model(checkpoint: Checkpoint, tower: Tower) -> nn.Module:
    """Return transformers' tower over the checkpoint's own tensors."""
    from transformers import AutoConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    config: Any = AutoConfig.from_pretrained(checkpoint.folder)
    kind: Any = CLIPVisionModelWithProjection if tower == "image" else CLIPTextModelWithProjection
    if config.model_type == "clip":
        dim = config.projection_dim
        config = config.vision_config if tower == "image" else config.text_config
        config.projection_dim = dim
    with torch.device("meta"):  # no memory for weights that are replaced
        model = cast("nn.Module", kind(config))
    wanted = model.state_dict().keys()
    tensors = {
        name: tensor.float() for name, tensor in checkpoint.tensors.items() if name in wanted
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    for part in model.modules():
        if isinstance(ids := getattr(part, "position_ids", None), Tensor):
            part.position_ids = torch.arange(ids.shape[-1])[None]
    return model.eval()


def _pixels(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    """Return the function from a program's patches to transformers' pixels."""
    shape = checkpoint.image_tower()
    side, patch = shape.image_size // shape.patch_size, shape.patch_size
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (checkpoint.mean, checkpoint.std)
    )

    def pixels(patches: Tensor) -> Tensor:
        grid = patches.view(-1, side, side, patch, patch, 3).permute(0, 5, 1, 3, 2, 4)
        return (grid.reshape(-1, 3, side * patch, side * patch) - mean) / std

    return pixels
