"""The sizes that a checkpoint's `config.json` tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from aioembed.errors import CheckpointError, MissingExtra, shorten
from aioembed.export.clip.shapes import Activation, TextShape, VisionShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["read_shapes"]

_CHANNELS = 3
_OLD_END_OF_TEXT = 2


def read_shapes(file: Path) -> tuple[VisionShape | None, TextShape | None]:
    """Return the sizes of both towers; None for a tower that the checkpoint does not have.

    Args:
        file: A `config.json` as transformers writes it. What it leaves out has transformers'
            defaults.

    Raises:
        CheckpointError: The file is missing or unreadable, or tells of no CLIP with ViT.
        MissingExtra: transformers is not installed.
    """
    try:
        raw = json.loads(file.read_bytes())
    except OSError as exc:
        msg = f"{shorten(file)} cannot be read; a checkpoint is a folder with config.json: {exc}"
        raise CheckpointError(msg) from exc
    except ValueError as exc:
        raise CheckpointError(f"{shorten(file)} is no JSON: {exc}") from exc
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    towers = {"clip": "both", "clip_vision_model": "vision", "clip_text_model": "text"}
    if kind not in towers:
        msg = f"{shorten(file)} tells of a model of type {shorten(kind)}, not of CLIP ('clip')"
        raise CheckpointError(msg)
    try:
        return _shapes(raw, towers[kind])
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as exc:
        raise CheckpointError(f"{shorten(file)} has sizes that cannot be: {exc}") from exc


def _shapes(raw: dict[str, Any], towers: str) -> tuple[VisionShape | None, TextShape | None]:
    """Read the sizes through transformers, which knows the defaults."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
    except ImportError as exc:
        raise MissingExtra("transformers", "export") from exc
    kinds: dict[str, Any] = {"vision": CLIPVisionConfig, "text": CLIPTextConfig, "both": CLIPConfig}
    try:
        config: Any = kinds[towers].from_dict(raw)
    except StrictDataclassError as exc:
        raise CheckpointError(f"config.json has sizes that cannot be: {exc}") from exc
    dim = int(config.projection_dim or 0)
    if towers == "both":
        return _vision(config.vision_config, dim), _text(config.text_config, dim)
    return (_vision(config, dim), None) if towers == "vision" else (None, _text(config, dim))


def _vision(config: PretrainedConfig, dim: int) -> VisionShape:
    """Return the image tower's sizes."""
    if config.num_channels != _CHANNELS or config.image_size % config.patch_size:
        msg = "the image tower must take 3 channels and whole patches: "
        msg += f"it has {config.num_channels}, {config.image_size} and {config.patch_size} pixels"
        raise CheckpointError(msg)
    return VisionShape(
        image_size=config.image_size, patch_size=config.patch_size, **_common(config, dim)
    )


def _text(config: PretrainedConfig, dim: int) -> TextShape:
    """Return the text tower's sizes."""
    return TextShape(
        vocabulary=config.vocab_size,
        context_length=config.max_position_embeddings,
        end_of_text=_end_of_text(config),
        **_common(config, dim),
    )


def _end_of_text(config: PretrainedConfig) -> int:
    """Return the pooled token: old configs say 2 and mean the highest one."""
    token = config.eos_token_id
    return int(config.vocab_size - 1 if token is None or token == _OLD_END_OF_TEXT else token)


def _common(config: PretrainedConfig, dim: int) -> dict[str, Any]:
    """Return what both towers have."""
    if config.hidden_act not in get_args(Activation):
        known = ", ".join(get_args(Activation))
        raise CheckpointError(f"the activation {config.hidden_act!r} is not known, only {known}")
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError("the number of attention heads does not divide the width")
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.intermediate_size,
        "eps": config.layer_norm_eps,
        "activation": config.hidden_act,
        "embedding_dim": dim,
    }
