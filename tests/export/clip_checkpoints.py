"""CLIP checkpoints with random weights, in transformers' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["TINY_TEXT", "TINY_VISION", "make_heavy_tailed", "rewrite", "save_clip", "save_tiny"]

TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 600,
    "bos_token_id": 598,
    "eos_token_id": 599,
    "projection_dim": 16,
}
TINY_VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}


def save_clip(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Save a CLIP with seeded random weights, of ViT-B/32's sizes unless `config` has others."""
    from transformers import CLIPConfig, CLIPModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(CLIPConfig(**config)).eval().save_pretrained(folder)
    return folder


def save_tiny(folder: Path, *, activation: str = "quick_gelu", seed: int = 0) -> Path:
    """Save a CLIP of two small blocks per tower, its norms and biases random as well."""
    same = {"hidden_act": activation}
    save_clip(
        folder,
        seed=seed,
        projection_dim=16,
        text_config=TINY_TEXT | same,
        vision_config=TINY_VISION | same,
    )
    generator = torch.Generator().manual_seed(seed)

    def change(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            if name.endswith("bias") or "norm" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)

    return rewrite(folder, change)


def rewrite(folder: Path, change: Any, config: dict[str, Any] | None = None) -> Path:
    """Change a checkpoint's tensors in place, and entries of its config."""
    file = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(state)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        file,
        metadata={"format": "pt"},
    )
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def make_heavy_tailed(state: dict[str, Tensor], *, seed: int = 0, outliers: int = 4) -> None:
    """Give a CLIP the tails that trained ViTs have.

    A few channels of the residual stream are ten times the others and biased, and the norms
    scale them down again; the weights that write to the stream have Student's t with 3 degrees of
    freedom mixed in; norms' scales and rows of the other weights are log-normal.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    for tower in ("vision_model", "text_model"):
        width = state[f"{tower}.encoder.layers.0.layer_norm1.weight"].numel()
        channels = torch.randperm(width, generator=generator)[:outliers]
        for name in sorted(name for name in state if name.startswith(tower)):
            tensor = state[name]
            if "norm" in name and name.endswith("weight"):
                tensor.copy_(torch.exp(0.7 * normal(width)))
                tensor[channels] *= 0.05
            elif "norm" in name:
                tensor.copy_(0.3 * normal(width))
            elif name.endswith(("out_proj.bias", "fc2.bias")):
                tensor.copy_(0.05 * normal(width))
                tensor[channels] += 3 * normal(outliers)
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                rows = 10 * tensor[channels]
                t = normal(*tensor.shape) / normal(3, *tensor.shape).pow(2).mean(0).sqrt()
                tensor.copy_(0.5 * tensor + 0.5 * tensor.std() * t.clamp(-30, 30))
                tensor[channels] += rows
            elif "position_embedding" in name:
                tensor[:, channels] += 5 * tensor.std() * normal(len(tensor), outliers)
            elif name.endswith(("fc1.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")):
                tensor *= 1.5 * torch.exp(0.5 * normal(len(tensor), 1))
