"""The model families that can be exported, as data: sizes, names of tensors, parts, preprocessing.

A new family of vision transformers is a `Family` here. What a family has is told by the names of
its tensors: a tower with a `pre_norm` has one, blocks with a `scale1` have a LayerScale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aioembed.errors import CheckpointError, MissingExtra, shorten
from aioembed.models import CLIP_PREPROCESSING, Preprocessing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "CLIP",
    "DINOV2",
    "SIGLIP",
    "Activation",
    "Family",
    "Pixels",
    "TextShape",
    "Tower",
    "TowerShape",
    "VisionShape",
    "read_family",
]

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "swiglu"]
Pooling = Literal["first", "mean", "attention"]
Tower = Literal["image", "text"]

_Triple = tuple[float, float, float]
_Shape = tuple[int, ...]

_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_CHANNELS = 3
_OLD_END_OF_TEXT = 2


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """What image and text towers have.

    Attributes:
        width: Of the residual stream.
        layers: Number of transformer blocks.
        heads: Number of attention heads.
        hidden: Width between the linears of a block.
        eps: Of the norms.
        activation: Between the linears of a block; `swiglu` multiplies two of them.
        embedding_dim: Values per vector.
        names: Name in the checkpoint of each part of the tower.
        block_names: Likewise of each part of a block, with `{}` for the block's number.
        unbiased: Linears that have no bias.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    eps: float
    activation: Activation
    embedding_dim: int
    names: Mapping[str, str]
    block_names: Mapping[str, str]
    unbiased: frozenset[str] = frozenset()

    def tensors(self) -> Iterator[tuple[str, _Shape]]:
        """Iterate over the names and shapes of the tower's tensors in the checkpoint."""
        for part, name in self.names.items():
            yield from self._part(part, name)
        for index in range(self.layers):
            for part, name in self.block_names.items():
                yield from self._part(part, name.format(index))

    def _part(self, part: str, name: str) -> Iterator[tuple[str, _Shape]]:
        linears, rows = self._linears(), self._rows()
        if part in linears:
            yield f"{name}.weight", linears[part]
            if part not in self.unbiased:
                yield f"{name}.bias", linears[part][:1]
        elif "norm" in part:
            yield f"{name}.weight", (self.width,)
            yield f"{name}.bias", (self.width,)
        elif part == "pool.inputs":
            yield f"{name}_weight", (3 * self.width, self.width)
            yield f"{name}_bias", (3 * self.width,)
        else:
            yield name, (rows[part], self.width) if part in rows else (self.width,)

    def _linears(self) -> dict[str, _Shape]:
        """Return the shapes of weights that may have a bias."""
        width, hidden = self.width, self.hidden
        square = dict.fromkeys(("q", "k", "v", "out", "pool.out"), (width, width))
        return {
            **square,
            **dict.fromkeys(("fc1", "pool.fc1"), (hidden, width)),
            **dict.fromkeys(("fc2", "pool.fc2"), (width, hidden)),
            "gate_up": (2 * hidden, width),
            "projection": (self.embedding_dim, width),
        }

    def _rows(self) -> dict[str, int]:
        """Return the number of rows of tables that are added to tokens."""
        return {}


@dataclass(frozen=True, kw_only=True)
class VisionShape(TowerShape):
    """What an image tower has.

    Attributes:
        image_size: Side of the square image in pixels that the program takes.
        trained_size: Side of the images that the checkpoint's positions are for.
        patch_size: Side of a square patch in pixels.
        pooling: The vector is of the first token, the mean of the patches, or by attention.
        registers: Tokens between the class token and the patches.
        antialias: Whether positions are antialiased when they are interpolated to another size;
            None where the family has no such thing.
        mean: Per channel, of values 0..1; folded into the program.
        std: Likewise.
    """

    image_size: int
    trained_size: int
    patch_size: int
    pooling: Pooling
    registers: int = 0
    antialias: bool | None = None
    mean: _Triple = (0.0, 0.0, 0.0)
    std: _Triple = (1.0, 1.0, 1.0)

    @property
    def patches(self) -> int:
        """Patches per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return self.registers + ("class" in self.names)

    def fed(self, pixels: Pixels) -> VisionShape:
        """Return the tower for images that are prepared so.

        Raises:
            CheckpointError: They are of another size, and the family cannot take that.
        """
        size = pixels.preprocessing.height
        if size != self.trained_size and self.antialias is None:
            msg = f"the checkpoint is for images of {self.trained_size} pixels, not of {size}"
            raise CheckpointError(f"{msg}: its positions cannot be interpolated")
        if size % self.patch_size:
            msg = f"images of {size} pixels are not whole patches of {self.patch_size}"
            raise CheckpointError(msg)
        return replace(self, image_size=size, mean=pixels.mean, std=pixels.std)

    def _linears(self) -> dict[str, _Shape]:
        kernel = (self.width, _CHANNELS, self.patch_size, self.patch_size)
        return super()._linears() | {"patch": kernel}

    def _rows(self) -> dict[str, int]:
        grid = (self.trained_size // self.patch_size) ** 2
        return {"positions": grid + ("class" in self.names), "registers": self.registers}


@dataclass(frozen=True, kw_only=True)
class TextShape(TowerShape):
    """What a text tower has.

    Attributes:
        vocabulary: Number of tokens.
        context_length: Most tokens of a text, special tokens included.
        end_of_text: The token that is pooled; None where it is the last of a padded text, all of
            whose tokens see each other.
    """

    vocabulary: int
    context_length: int
    end_of_text: int | None

    def _rows(self) -> dict[str, int]:
        return {"table": self.vocabulary, "positions": self.context_length}


@dataclass(frozen=True)
class Pixels:
    """How a family's images are prepared where a checkpoint does not say it.

    Attributes:
        preprocessing: Without mean and standard deviation, which go into the program.
        mean: Per channel, of values 0..1.
        std: Likewise.
    """

    preprocessing: Preprocessing
    mean: _Triple
    std: _Triple


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        name: For people.
        kinds: The towers that a checkpoint has, by the `model_type` of its config.
        vision: Reads the sizes of the image tower from transformers' config of that tower, and of
            the checkpoint: the same one where the checkpoint has one tower.
        text: Likewise of the text tower.
        pixels: As its own checkpoints are published.
        models: Names of transformers' classes for each tower.
        output: Attribute of their outputs that is the embedding.
        extras: Tensors that a checkpoint may have and no program needs.
        scalars: Tensors of one value, such as `logit_scale`, of checkpoints with both towers.
        padded: Whether texts are padded with the tokenizer's padding, and lower-cased.
    """

    name: str
    kinds: Mapping[str, frozenset[Tower]]
    vision: Callable[[PretrainedConfig, PretrainedConfig], VisionShape]
    pixels: Pixels
    models: Mapping[Tower, str]
    output: Mapping[Tower, str]
    text: Callable[[PretrainedConfig, PretrainedConfig], TextShape] | None = None
    extras: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    padded: bool = False


def _common(config: PretrainedConfig) -> dict[str, Any]:
    """Return the sizes that transformers names alike in all families."""
    if config.hidden_act not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"the activation {config.hidden_act!r} is not known, only {known}")
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError("the number of attention heads does not divide the width")
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "eps": config.layer_norm_eps,
        "activation": _ACTIVATIONS[config.hidden_act],
    }


def _square(config: PretrainedConfig) -> dict[str, Any]:
    """Return the sizes of images and patches."""
    sizes = (config.image_size, config.patch_size)
    image, patch = (size if isinstance(size, int) else size[0] for size in sizes)
    whole = [size for size in sizes if not isinstance(size, int) and len(set(size)) > 1]
    if config.num_channels != _CHANNELS or whole or image % patch:
        msg = "the image tower must take 3 channels, squares, and whole patches: "
        msg += f"it has {config.num_channels}, {config.image_size} and {config.patch_size} pixels"
        raise CheckpointError(msg)
    return {"image_size": image, "trained_size": image, "patch_size": patch}


_BLOCK = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def _below(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {part: f"{prefix}{name}" for part, name in names.items()}


def _text(
    config: PretrainedConfig,
    prefix: str,
    names: Mapping[str, str],
    *,
    embedding_dim: int,
    end_of_text: int | None,
    unbiased: frozenset[str] = frozenset(),
) -> TextShape:
    """Return the text tower that CLIP and SigLIP have nearly alike."""
    own = {
        "table": "embeddings.token_embedding.weight",
        "positions": "embeddings.position_embedding.weight",
        "norm": "final_layer_norm",
    }
    return TextShape(
        vocabulary=config.vocab_size,
        context_length=config.max_position_embeddings,
        hidden=config.intermediate_size,
        names=_below(prefix, own) | dict(names),
        block_names=_below(f"{prefix}encoder.layers.{{}}.", _BLOCK),
        embedding_dim=embedding_dim,
        end_of_text=end_of_text,
        unbiased=unbiased,
        **_common(config),
    )


def _clip_vision(config: PretrainedConfig, checkpoint: PretrainedConfig) -> VisionShape:
    names = {
        "class": "embeddings.class_embedding",
        "patch": "embeddings.patch_embedding",
        "positions": "embeddings.position_embedding.weight",
        "pre_norm": "pre_layrnorm",
        "norm": "post_layernorm",
    }
    return VisionShape(
        hidden=config.intermediate_size,
        embedding_dim=int(checkpoint.projection_dim or 0),
        pooling="first",
        names=_below("vision_model.", names) | {"projection": "visual_projection"},
        block_names=_below("vision_model.encoder.layers.{}.", _BLOCK),
        unbiased=frozenset({"patch", "projection"}),
        **_square(config),
        **_common(config),
    )


def _clip_text(config: PretrainedConfig, checkpoint: PretrainedConfig) -> TextShape:
    return _text(
        config,
        "text_model.",
        {"projection": "text_projection"},
        embedding_dim=int(checkpoint.projection_dim or 0),
        end_of_text=_end_of_text(config),
        unbiased=frozenset({"projection"}),
    )


def _end_of_text(config: PretrainedConfig) -> int:
    """Return the pooled token: old configs say 2 and mean the highest one."""
    token = config.eos_token_id
    return int(config.vocab_size - 1 if token is None or token == _OLD_END_OF_TEXT else token)


def _siglip_vision(config: PretrainedConfig, checkpoint: PretrainedConfig) -> VisionShape:
    if not config.vision_use_head:
        raise CheckpointError("the image tower has no pooling head, and so gives no embedding")
    names = {
        "patch": "embeddings.patch_embedding",
        "positions": "embeddings.position_embedding.weight",
        "norm": "post_layernorm",
        "pool.probe": "head.probe",
        "pool.inputs": "head.attention.in_proj",
        "pool.out": "head.attention.out_proj",
        "pool.norm": "head.layernorm",
        "pool.fc1": "head.mlp.fc1",
        "pool.fc2": "head.mlp.fc2",
    }
    above = "" if config is checkpoint else "vision_model."
    return VisionShape(
        hidden=config.intermediate_size,
        embedding_dim=config.hidden_size,
        pooling="attention",
        names=_below(above, names),
        block_names=_below(f"{above}encoder.layers.{{}}.", _BLOCK),
        **_square(config),
        **_common(config),
    )


def _siglip_text(config: PretrainedConfig, checkpoint: PretrainedConfig) -> TextShape:
    above = "" if config is checkpoint else "text_model."
    return _text(
        config,
        above,
        {"projection": f"{above}head"},
        embedding_dim=config.projection_size,
        end_of_text=None,
    )


def _dinov2_vision(config: PretrainedConfig, _checkpoint: PretrainedConfig) -> VisionShape:
    names = {
        "class": "embeddings.cls_token",
        "patch": "embeddings.patch_embeddings.projection",
        "positions": "embeddings.position_embeddings",
        "norm": "layernorm",
    }
    block = {
        "norm1": "norm1",
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "out": "attention.output.dense",
        "scale1": "layer_scale1.lambda1",
        "norm2": "norm2",
        "scale2": "layer_scale2.lambda1",
    }
    hidden = int(config.hidden_size * config.mlp_ratio)
    mlp = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    common = _common(config)
    if config.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        mlp = {"gate_up": "mlp.weights_in", "fc2": "mlp.weights_out"}
        common["activation"] = "swiglu"
    registers = int(getattr(config, "num_register_tokens", 0))
    if registers:
        names["registers"] = "embeddings.register_tokens"
    return VisionShape(
        hidden=hidden,
        embedding_dim=config.hidden_size,
        pooling="first",
        registers=registers,
        antialias=registers > 0,
        names=names,
        block_names=_below("encoder.layer.{}.", block | mlp),
        unbiased=frozenset() if config.qkv_bias else frozenset("qkv"),
        **_square(config),
        **common,
    )


_SQUASHED = Preprocessing(
    height=224, width=224, resize="stretch", interpolation="bicubic", antialias=True
)
_BOTH: frozenset[Tower] = frozenset({"image", "text"})
_IMAGE: frozenset[Tower] = frozenset({"image"})
_TEXT: frozenset[Tower] = frozenset({"text"})

CLIP = Family(
    name="CLIP",
    kinds={"clip": _BOTH, "clip_vision_model": _IMAGE, "clip_text_model": _TEXT},
    vision=_clip_vision,
    text=_clip_text,
    pixels=Pixels(
        CLIP_PREPROCESSING,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    models={"image": "CLIPVisionModelWithProjection", "text": "CLIPTextModelWithProjection"},
    output={"image": "image_embeds", "text": "text_embeds"},
    scalars=frozenset({"logit_scale"}),
)
SIGLIP = Family(
    name="SigLIP",
    kinds={"siglip": _BOTH, "siglip_vision_model": _IMAGE, "siglip_text_model": _TEXT},
    vision=_siglip_vision,
    text=_siglip_text,
    pixels=Pixels(_SQUASHED, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    models={"image": "SiglipVisionModel", "text": "SiglipTextModel"},
    output={"image": "pooler_output", "text": "pooler_output"},
    scalars=frozenset({"logit_scale", "logit_bias"}),
    padded=True,
)
DINOV2 = Family(
    name="DINOv2",
    kinds={"dinov2": _IMAGE, "dinov2_with_registers": _IMAGE},
    vision=_dinov2_vision,
    pixels=Pixels(
        CLIP_PREPROCESSING.model_copy(update={"shortest_edge": 256}),
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    models={"image": "AutoModel"},
    output={"image": "pooler_output"},
    extras=frozenset({"embeddings.mask_token"}),
)
FAMILIES = (CLIP, SIGLIP, DINOV2)


def read_family(folder: Path) -> tuple[Family, VisionShape | None, TextShape | None]:
    """Return the family of a checkpoint, and the sizes of its towers; None for one it lacks.

    Args:
        folder: With a `config.json` as transformers writes it. What it leaves out has
            transformers' defaults.

    Raises:
        CheckpointError: The file is missing or unreadable, or of no family that is known.
        MissingExtra: transformers is not installed.
    """
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except OSError as exc:
        _refuse_open_clip(folder)
        msg = f"{shorten(file)} cannot be read; a checkpoint is a folder with config.json: {exc}"
        raise CheckpointError(msg) from exc
    except ValueError as exc:
        raise CheckpointError(f"{shorten(file)} is not JSON: {exc}") from exc
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    family = next((family for family in FAMILIES if kind in family.kinds), None)
    if family is None or not isinstance(kind, str):
        raise CheckpointError(_unknown(file, kind))
    try:
        config = _config(raw, kind)
        towers = family.kinds[kind]
        both = len(towers) > 1
        image = (config.vision_config if both else config) if "image" in towers else None
        text = (config.text_config if both else config) if "text" in towers else None
        return (
            family,
            family.vision(image, config) if image else None,
            family.text(text, config) if text and family.text else None,
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as exc:
        raise CheckpointError(f"{shorten(file)} has sizes that cannot be: {exc}") from exc


def _config(raw: dict[str, Any], kind: str) -> PretrainedConfig:
    """Read a config through transformers, which knows the defaults."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING
    except ImportError as exc:
        raise MissingExtra("transformers", "export") from exc
    try:
        return CONFIG_MAPPING[kind].from_dict(raw)
    except StrictDataclassError as exc:
        raise CheckpointError(f"config.json has sizes that cannot be: {exc}") from exc


def _unknown(file: Path, kind: object) -> str:
    """Say why a model type cannot be exported."""
    if isinstance(kind, str) and kind.startswith("siglip2"):
        return (
            f"{shorten(file)} is of a NaFlex SigLIP 2, which takes images of any resolution: its "
            "number of patches changes with each image, and a program's is fixed. Take a SigLIP 2 "
            "of fixed resolution, such as google/siglip2-base-patch16-224"
        )
    known = "; ".join(f"{family.name} ({', '.join(family.kinds)})" for family in FAMILIES)
    return (
        f"{shorten(file)} is of a model of type {shorten(kind)}; known are {known}. Any other "
        'torch module is exported as the page "Your own model" shows'
    )


def _refuse_open_clip(folder: Path) -> None:
    """Say how to go on where a folder holds open_clip's own format."""
    if any(folder.glob("open_clip*")):
        raise CheckpointError(
            f"{shorten(folder)} is a checkpoint in open_clip's format; convert it to transformers' "
            "first: python -m aioembed.export.open_clip FROM TO"
        )
