"""The preprocessing and output of an image program without metadata: presets, files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import InvalidConfig, UnknownPreprocessing, WrongDimensions, shorten
from .models import (
    CLIP_PREPROCESSING,
    IMAGENET_PREPROCESSING,
    RNE_PREPROCESSING,
    RNE_PREPROCESSING_0_10_6,
    Preprocessing,
    Sidecar,
)
from .runtime import MethodInfo

__all__ = ["PRESETS", "named_preprocessing", "read_beside", "unknown"]

PRESETS = {
    "rne": RNE_PREPROCESSING,
    "rne-0.10.6": RNE_PREPROCESSING_0_10_6,
    "clip": CLIP_PREPROCESSING.model_copy(
        update={"mean": RNE_PREPROCESSING_0_10_6.mean, "std": RNE_PREPROCESSING_0_10_6.std}
    ),
    "imagenet": IMAGENET_PREPROCESSING,
}
"""What programs that carry no metadata are most often exported for. They apply no mean and std
themselves, other than the CLIP programs that are exported here."""

_HUB_CONFIGS = ("preprocessor_config.json", "processor_config.json")
_EXPORT_MANIFEST = "export.json"
_EXPORT_VERSION = 1
_EMBEDDINGS = ("image_embeds", "text_embeds", "pooler_output")
"""Outputs of transformers' models that are the embedding, the best first."""
_KERNELS = {2: "bilinear", 3: "bicubic"}
_CHANNELS = 3


def named_preprocessing(name: str, forward: MethodInfo) -> Preprocessing:
    """Return a preset or what a file says, at the size and in the layout of a program's input.

    Args:
        name: `rne`, `rne-0.10.6`, `clip`, `imagenet`, or the path of a JSON file.
        forward: The program's method.

    Raises:
        InvalidConfig: No such preset or file, or a file that does not say what it should.
        WrongDimensions: The program takes no float32 image.
    """
    preset = PRESETS.get(name)
    if preset is None:
        if not name.endswith(".json"):
            raise InvalidConfig(
                f"no preprocessing is named {shorten(name)}: use {', '.join(PRESETS)}, or the path "
                "of a .json file"
            )
        said = _read(Path(name), forward).preprocessing
        if said is None:
            raise InvalidConfig(f"{shorten(name)} says nothing of the preprocessing")
        return said
    return _fitted(preset, forward)


def read_beside(program: Path, forward: MethodInfo) -> Sidecar:
    """Return what the files beside a program say, the first that says it.

    They are `NAME.json`, a Hugging Face `preprocessor_config.json` or `processor_config.json`, and
    the `export.json` that transformers' exporters write.

    Raises:
        InvalidConfig: One of them cannot be read, or does not say what it should.
    """
    said = Sidecar()
    names = (program.with_suffix(".json").name, *_HUB_CONFIGS)
    for path in map(program.with_name, names):
        if said.preprocessing is None and path.is_file():
            found = _read(path, forward)
            output = found.output if said.output is None else said.output
            said = Sidecar(preprocessing=found.preprocessing, output=output)
    manifest = program.with_name(_EXPORT_MANIFEST)
    if said.output is None and manifest.is_file():
        output = _of_export(_json(manifest), manifest, program, forward)
        said = said.model_copy(update={"output": output})
    return said


def _json(path: Path) -> dict[str, Any]:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise InvalidConfig(f"{shorten(path)} cannot be read: {exc}") from exc
    if not isinstance(content, dict):
        raise InvalidConfig(f"{shorten(path)} holds no JSON object")
    return content


def _read(path: Path, forward: MethodInfo) -> Sidecar:
    """Read a sidecar of `aioembed describe`, or a config of a Hugging Face processor."""
    content = _json(path)
    if isinstance(content.get("image_processor"), dict):  # as processor_config.json has it
        content = content["image_processor"]
    if path.name in _HUB_CONFIGS or "image_processor_type" in content:
        return Sidecar(preprocessing=_of_hub(content, path, forward))
    try:
        return Sidecar.model_validate(content)
    except (ValidationError, InvalidConfig) as exc:
        raise InvalidConfig(f"{shorten(path)} is not a sidecar of aioembed: {exc}") from exc


def _of_export(
    content: dict[str, Any], path: Path, program: Path, forward: MethodInfo
) -> int | None:
    """Return which output is the embedding, by the names that transformers' exporter recorded."""
    version = content.get("schema_version", 1)
    if version != _EXPORT_VERSION:
        raise InvalidConfig(f"{shorten(path)}: schema_version is {version!r}; 1 is known")
    try:
        entries = {entry["file"]: entry["metadata"] for entry in content["components"].values()}
        if program.name not in entries:
            return None
        _, specification = json.loads(entries[program.name]["out_spec"])
        names = json.loads(specification["context"] or "[]")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidConfig(
            f"{shorten(path)}: components or out_spec cannot be used: {exc!r}"
        ) from exc
    if len(names) != len(forward.outputs):
        return None
    return next((names.index(name) for name in _EMBEDDINGS if name in names), None)


def unknown(spec_name: str, forward: MethodInfo, program: Path | None) -> UnknownPreprocessing:
    """Return the error for a program of which nothing says what pixels it takes."""
    where = ""
    if program is not None:
        where = f", {program.with_suffix('.json').name} or {_HUB_CONFIGS[0]} beside it"
    return UnknownPreprocessing(
        f"nothing says what pixels {shorten(spec_name)} takes ({forward.inputs[0]}); looked for: "
        f"preprocessing=, metadata inside the program{where}, a registered constant. Pass a "
        f"Preprocessing or one of {', '.join(PRESETS)}, or save it beside the file: "
        "aioembed describe FILE --preprocessing NAME --save"
    )


def _of_hub(content: dict[str, Any], path: Path, forward: MethodInfo) -> Preprocessing:
    """Read what transformers' image processors of the CLIP and ViT kind write."""

    def wrong(field: str, why: str) -> InvalidConfig:
        return InvalidConfig(f"{shorten(path)}: {field} {why}")

    if "size" not in content and "crop_size" not in content:
        kind = content.get("image_processor_type") or content.get("feature_extractor_type")
        raise wrong("size", f"is missing; is {kind!r} an image processor?")
    kernel = _KERNELS.get(content.get("resample", 2))
    if kernel is None:
        raise wrong(
            "resample", f"is {content['resample']!r}; 2 (bilinear) and 3 (bicubic) are known"
        )
    size, crop = content.get("size"), content.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    crops = bool(content.get("do_center_crop", crop is not None))
    normalizes = content.get("do_normalize", True)
    try:
        preset = Preprocessing.model_validate(
            {
                "height": _side(crop if crops else size, "height"),
                "width": _side(crop if crops else size, "width"),
                "resize": "crop" if crops else "stretch",
                "shortest_edge": edge if crops and isinstance(edge, int) else None,
                "interpolation": kernel,
                "antialias": True,
                "scale": content.get("rescale_factor", 1 / 255)
                if content.get("do_rescale", True)
                else 1,
                "mean": content.get("image_mean", [0.5] * 3) if normalizes else [0.0] * 3,
                "std": content.get("image_std", [0.5] * 3) if normalizes else [1.0] * 3,
            }
        )
    except (ValidationError, InvalidConfig, KeyError, TypeError) as exc:
        raise wrong("size, crop_size, image_mean or image_std", f"cannot be used: {exc}") from exc
    return preset.model_copy(update={"layout": _layout(forward)})


def _side(size: object, name: str) -> object:
    return size[name] if isinstance(size, dict) else size


def _layout(forward: MethodInfo) -> str:
    shape = forward.inputs[0].shape
    return "nhwc" if shape[-1:] == (_CHANNELS,) and shape[-3:-2] != (_CHANNELS,) else "nchw"


def _fitted(preset: Preprocessing, forward: MethodInfo) -> Preprocessing:
    """Return a preset at a program's size; what is scaled before a crop grows with it."""
    info = forward.inputs[0]
    shape = info.shape[-3:]
    if info.dtype != "float32" or len(info.shape) not in {3, 4} or _CHANNELS not in shape:
        raise WrongDimensions(f"the program takes {info}, which is not a float32 image")
    layout = _layout(forward)
    height, width = shape[1:] if layout == "nchw" else shape[:2]
    edge = preset.shortest_edge
    if edge is not None:
        edge = round(edge * min(height, width) / min(preset.height, preset.width))
    changes = {"height": height, "width": width, "layout": layout, "shortest_edge": edge}
    return preset.model_copy(update=changes)
