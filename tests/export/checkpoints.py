"""Checkpoints of every family with random weights, in transformers' format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = [
    "FULL",
    "TINY",
    "TINY_TEXT",
    "TINY_VISION",
    "make_heavy_tailed",
    "rewrite",
    "save",
    "save_clip",
    "save_tiny",
    "save_tokenizer",
]

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
_SIGLIP_TEXT = {key: value for key, value in TINY_TEXT.items() if key != "projection_dim"} | {
    "projection_size": 48,
    "max_position_embeddings": 12,
}
_SIGLIP_VISION = {key: value for key, value in TINY_VISION.items() if key != "projection_dim"}
_DINOV2 = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 8,
    "layerscale_value": 0.5,
    "initializer_range": 0.2,
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIP", {"projection_dim": 16, "text": TINY_TEXT, "vision": TINY_VISION}),
    "clip-gelu": (
        "CLIP",
        {
            "projection_dim": 16,
            "text": TINY_TEXT | {"hidden_act": "gelu"},
            "vision": TINY_VISION | {"hidden_act": "gelu"},
        },
    ),
    "siglip": ("Siglip", {"text": _SIGLIP_TEXT, "vision": _SIGLIP_VISION}),
    "dinov2": ("Dinov2", _DINOV2),
    "dinov2-swiglu": ("Dinov2", _DINOV2 | {"use_swiglu_ffn": True}),
    "dinov2-registers": ("Dinov2WithRegisters", _DINOV2),
}
"""Class of transformers and config of a tiny model of each kind."""

_CLIP_VISION = {"hidden_act": "gelu", "patch_size": 32, "image_size": 224}
_CLIP_TEXT = {"hidden_act": "gelu", "initializer_factor": 3.0}
_S14 = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
FULL: dict[str, tuple[str, dict[str, Any], int]] = {
    "clip-b32": ("CLIP", {"text": {"initializer_factor": 3.0}, "vision": {}}, 224),
    "openclip-b32-256": (
        "CLIP",
        {"text": _CLIP_TEXT, "vision": _CLIP_VISION | {"image_size": 256}},
        256,
    ),
    "tinyclip-39m": (
        "CLIP",
        {
            "text": _CLIP_TEXT | {"num_hidden_layers": 6},
            "vision": _CLIP_VISION
            | {"patch_size": 16, "hidden_size": 512, "intermediate_size": 2048}
            | {"num_attention_heads": 8},
        },
        224,
    ),
    "siglip2-b16-224": ("Siglip", {"text": {"vocab_size": 600}, "vision": {}}, 224),
    "dinov2-s14": ("Dinov2", _S14, 224),
    "dinov2-s14-registers": ("Dinov2WithRegisters", _S14, 224),
}
"""Class, config and image size of models of full size, with a small vocabulary for SigLIP 2."""

_PREPROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "Siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "Dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
}
_PREPROCESSORS["Dinov2WithRegisters"] = _PREPROCESSORS["Dinov2"]
"""What the preprocessor's config of each class says, for 32 pixels."""


def save(
    folder: Path, kind: str, config: dict[str, Any], *, seed: int = 0, image_size: int | None = None
) -> Path:
    """Save a model with seeded random weights, and its preprocessor.

    Args:
        folder: Where to.
        kind: Class of transformers, without `Model`, such as `Siglip`.
        config: Its sizes; those below `vision` and `text` are of the towers' configs.
        seed: Of the weights.
        image_size: Of the preprocessor; DINOv2's positions are for another size than that.
    """
    import transformers

    towers = {f"{tower}_config": config[tower] for tower in ("text", "vision") if tower in config}
    own = {key: value for key, value in config.items() if key not in {"text", "vision"}}
    settings = getattr(transformers, f"{kind}Config")(**own, **towers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{kind}Model")(settings).eval().save_pretrained(folder)
    content = json.dumps(_PREPROCESSORS[kind])
    if image_size is not None:
        content = content.replace("32", str(image_size)).replace("36", str(image_size * 8 // 7))
    (folder / "preprocessor_config.json").write_text(content)
    return folder


def save_clip(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Save a CLIP with seeded random weights, of ViT-B/32's sizes unless `config` has others."""
    towers = {tower: config.pop(f"{tower}_config", {}) for tower in ("text", "vision")}
    size = towers["vision"].get("image_size", 224)
    return save(folder, "CLIP", config | towers, seed=seed, image_size=size)


def save_tiny(folder: Path, name: str = "clip", *, seed: int = 0) -> Path:
    """Save a tiny model of a kind that `TINY` has, its norms, biases and scales random as well."""
    save(folder, *TINY[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def change(state: dict[str, Tensor]) -> None:
        for part, tensor in state.items():
            if part.endswith(("bias", "lambda1")) or "norm" in part or "_token" in part:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)

    return rewrite(folder, change)


def save_tokenizer(folder: Path, words: int = 590) -> Path:
    """Save a tokenizer as SigLIP 2's is: an end behind a text, and its own padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [a + b for a in letters for b in letters]
    vocabulary = special | {word: 3 + i for i, word in enumerate([*letters, *pairs][:words])}
    merges = [tuple(word) for word in vocabulary if len(word) == 2]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", None, [("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def rewrite(
    folder: Path, change: Callable[[dict[str, Tensor]], Any], config: dict[str, Any] | None = None
) -> Path:
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
    """Give a checkpoint the tails that trained ViTs have.

    A few channels of the residual stream are ten times the others and biased, and the norms
    scale them down again; the weights that write to the stream have Student's t with 3 degrees of
    freedom mixed in; norms' scales and rows of the other weights are log-normal.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    towers = [
        prefix for prefix in ("vision_model", "text_model") if any(prefix in n for n in state)
    ]
    for tower in towers or [""]:
        names = sorted(name for name in state if name.startswith(tower) and ".head." not in name)
        width = next(state[name] for name in names if "norm1.weight" in name).numel()
        channels = torch.randperm(width, generator=generator)[:outliers]
        for name in names:
            tensor = state[name]
            if "norm" in name and name.endswith("weight"):
                tensor.copy_(torch.exp(0.7 * normal(width)))
                tensor[channels] *= 0.05
            elif "norm" in name:
                tensor.copy_(0.3 * normal(width))
            elif name.endswith((*_WRITERS_BIAS, "weights_out.bias")):
                tensor.copy_(0.05 * normal(width))
                tensor[channels] += 3 * normal(outliers)
            elif name.endswith(_WRITERS):
                rows = 10 * tensor[channels]
                t = normal(*tensor.shape) / normal(3, *tensor.shape).pow(2).mean(0).sqrt()
                tensor.copy_(0.5 * tensor + 0.5 * tensor.std() * t.clamp(-30, 30))
                tensor[channels] += rows
            elif "position_embedding" in name:
                rows = tensor.view(-1, width)
                rows[:, channels] += 5 * tensor.std() * normal(len(rows), outliers)
            elif name.endswith(_READERS):
                tensor *= 1.5 * torch.exp(0.5 * normal(len(tensor), 1))


_WRITERS = ("out_proj.weight", "fc2.weight", "output.dense.weight", "weights_out.weight")
_WRITERS_BIAS = tuple(name.replace("weight", "bias") for name in _WRITERS[:3])
_READERS = (
    *("fc1.weight", "weights_in.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight"),
    *("query.weight", "key.weight", "value.weight"),
)
