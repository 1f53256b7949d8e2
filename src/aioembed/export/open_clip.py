"""Convert a CLIP of open_clip to transformers' format.

python -m aioembed.export.open_clip FROM TO

FROM holds `open_clip_config.json` and `open_clip_model.safetensors` (or
`open_clip_pytorch_model.bin`), as open_clip's models lie on the Hugging Face hub. TO is made, with
`config.json`, `model.safetensors`, `preprocessor_config.json`, and FROM's tokenizer if it has one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aioembed.errors import CheckpointError, MissingExtra, shorten
from aioembed.export.checkpoint import read_tensors

try:
    from safetensors.torch import save_file
    from torch import Tensor
except ImportError as exc:
    raise MissingExtra("torch", "export") from exc

__all__ = ["convert", "main"]

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_TRANSPOSED = ("visual.proj", "text_projection")


def convert(source: Path, to: Path) -> None:
    """Write a CLIP of open_clip's format in transformers' format.

    Args:
        source: Folder with its config and weights.
        to: Folder to make; files in it are replaced.

    Raises:
        CheckpointError: A file is missing or unreadable, or the model is not a CLIP with a
            plain ViT and its text transformer.
    """
    file = source / "open_clip_config.json"
    try:
        config = json.loads(file.read_bytes())
        model, pixels = config["model_cfg"], config["preprocess_cfg"]
        settings, preprocessor = _config(model), _preprocessor(model, pixels)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        msg = f"{shorten(file)} is not of a CLIP with a ViT: {type(exc).__name__} {exc}"
        raise CheckpointError(msg) from exc
    weights = next((source / name for name in _WEIGHTS if (source / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{shorten(source)} has none of {', '.join(_WEIGHTS)}")
    tensors = dict(_renamed(read_tensors(weights)))
    to.mkdir(parents=True, exist_ok=True)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", settings), ("preprocessor_config.json", preprocessor)):
        (to / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "README.md"):
        if (source / name).is_file():
            shutil.copy(source / name, to / name)


def _config(model: dict[str, Any]) -> dict[str, Any]:
    """Return transformers' config of a model."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    odd = {"timm_model_name", "hf_model_name", "pool_type", "attentional_pool", "no_ln_pre"}
    if found := sorted(odd & (vision.keys() | text.keys())):
        raise ValueError(f"it has {', '.join(found)}")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"

    def tower(own: dict[str, Any], heads: int) -> dict[str, Any]:
        return {
            "hidden_size": own["width"],
            "intermediate_size": int(own["width"] * own.get("mlp_ratio", 4.0)),
            "num_hidden_layers": own["layers"],
            "num_attention_heads": heads,
            "hidden_act": activation,
            "layer_norm_eps": 1e-5,
            "projection_dim": model["embed_dim"],
        }

    vocabulary = text.get("vocab_size", 49408)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "vision_config": tower(vision, vision["width"] // vision.get("head_width", 64))
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_config": tower(text, text["heads"])
        | {"max_position_embeddings": text.get("context_length", 77), "vocab_size": vocabulary}
        | {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1},
    }


def _preprocessor(model: dict[str, Any], pixels: dict[str, Any]) -> dict[str, Any]:
    """Return transformers' config of the preprocessing."""
    side = model["vision_cfg"]["image_size"]
    square = {"height": side, "width": side}
    modes: dict[str, dict[str, Any]] = {
        "shortest": {"size": {"shortest_edge": side}, "crop_size": square, "do_center_crop": True},
        "squash": {"size": square, "do_center_crop": False},
    }
    return {
        "image_processor_type": "CLIPImageProcessor",
        "resample": {"bilinear": 2, "bicubic": 3}[pixels.get("interpolation", "bicubic")],
        "image_mean": pixels["mean"],
        "image_std": pixels["std"],
        **modes[pixels.get("resize_mode", "shortest")],
    }


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors by transformers' names."""
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            before = next((key for key in _NAMES if name.startswith(key)), None)
            if before is None:
                raise CheckpointError(f"{shorten(name)} is not a tensor of a CLIP with a ViT")
            whole = tensor.T if name in _TRANSPOSED else tensor
            yield name.replace(before, _NAMES[before], 1), whole.contiguous()
            continue
        tower = "vision_model" if block[1] else "text_model"
        prefix, part = f"{tower}.encoder.layers.{block[2]}.", block[3]
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{prefix}self_attn.{letter}_proj.{kind}", rows.clone()
            continue
        before = next((key for key in _IN_BLOCK if part.startswith(key)), None)
        if before is None:
            raise CheckpointError(f"{shorten(name)} is not a tensor of a CLIP with a ViT")
        yield prefix + part.replace(before, _IN_BLOCK[before], 1), tensor.contiguous()


def main() -> int:
    """Convert a folder from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m aioembed.export.open_clip",
        description="Convert a CLIP of open_clip to transformers' format.",
    )
    parser.add_argument("source", metavar="FROM", type=Path)
    parser.add_argument("to", metavar="TO", type=Path)
    options = parser.parse_args()
    try:
        convert(options.source, options.to)
    except CheckpointError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
