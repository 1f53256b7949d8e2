"""The models that have a name, and what else a model source may be."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from .errors import InvalidModelSource, UnknownModel, shorten
from .spec import RNE_PREPROCESSING, ModelSpec

__all__ = [
    "CLIP_VIT_BASE_PATCH32_IMAGE",
    "CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED",
    "CLIP_VIT_BASE_PATCH32_TEXT",
    "EMBEDDED_SCHEME",
    "GIST_512",
    "MODELS",
    "ModelSource",
    "local_file",
    "local_path",
    "resolve_model",
]

ModelSource = ModelSpec | str | os.PathLike[str]
"""What a model can be given as: a `ModelSpec`, a registered name, a URL, or a path."""

EMBEDDED_SCHEME = "embedded:"

_HUB = (
    "https://huggingface.co/software-mansion/react-native-executorch-clip-vit-base-patch32"
    "/resolve/v0.9.0"
)
_CHECKPOINT = "openai/clip-vit-base-patch32"

CLIP_VIT_BASE_PATCH32_IMAGE = ModelSpec(
    name="clip-vit-base-patch32-image",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_image_xnnpack_fp32.pte",
    modality="image",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    checkpoint=_CHECKPOINT,
    licence="MIT",
    summary="CLIP ViT-B/32, image tower, fp32 (352 MB); the file the React Native hook uses",
)
CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED = ModelSpec(
    name="clip-vit-base-patch32-image-quantized",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_image_xnnpack_int8.pte",
    modality="image",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    checkpoint=_CHECKPOINT,
    precision="int8",
    licence="MIT",
    summary="CLIP ViT-B/32, image tower, int8 (96.4 MB); the file the React Native hook uses",
)
CLIP_VIT_BASE_PATCH32_TEXT = ModelSpec(
    name="clip-vit-base-patch32-text",
    source=f"{_HUB}/xnnpack/clip_vit_base_patch32_text_xnnpack_fp32.pte",
    modality="text",
    embedding_dim=512,
    preprocessing=RNE_PREPROCESSING,
    tokenizer_source=f"{_HUB}/tokenizer.json",
    checkpoint=_CHECKPOINT,
    licence="MIT",
    summary="CLIP ViT-B/32, text tower, fp32 (254 MB); shares its space with the image tower",
)
GIST_512 = ModelSpec(
    name="gist-512",
    source="embedded:gist_512.pte",
    modality="image",
    embedding_dim=512,
    size_bytes=61344,
    sha256="9c5eb1bf7aa025e514f7e4fba13be1d658384ad965331159688cc7a091e36d2f",
    licence="MIT",
    summary="GIST scene descriptor, ships with the library: near-duplicates, not semantic",
)

MODELS = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            GIST_512,
            CLIP_VIT_BASE_PATCH32_IMAGE,
            CLIP_VIT_BASE_PATCH32_IMAGE_QUANTIZED,
            CLIP_VIT_BASE_PATCH32_TEXT,
        )
    }
)
"""Every registered model by its name."""


def resolve_model(source: ModelSource, *, modality: str = "image") -> ModelSpec:
    """Return the spec of a model source, without any I/O.

    Args:
        source: A `ModelSpec`, a registered name, an `https:`, `http:` or `file:` URL, or a path.
        modality: What a source that does not say embeds, `image` or `text`.

    Raises:
        UnknownModel: A bare word that is no registered name.
        InvalidModelSource: Of another type, empty, or of a scheme that cannot be loaded.
    """
    if isinstance(source, ModelSpec):
        return source
    if isinstance(source, os.PathLike):
        return _custom(os.fspath(source), modality)
    text: object = source
    if not isinstance(text, str) or not source:
        raise InvalidModelSource(
            f"a model source is a ModelSpec, a name, a URL or a path, not {shorten(source)}"
        )
    if source in MODELS:
        return MODELS[source]
    before, colon, after = source.partition(":")
    scheme = before.lower() if colon and (after.startswith("//") or before == "file") else ""
    if scheme == "file" and _host_of_file_url(source) not in {"", "localhost"}:
        raise InvalidModelSource(f"{shorten(source)} names a file of another host")
    if scheme in {"http", "https", "file"} or (not scheme and _looks_like_path(source)):
        return _custom(source, modality)
    if scheme:
        raise InvalidModelSource(
            f"cannot load a model from {shorten(source)}: use https:, http:, file: or a path"
        )
    raise _unknown(source)


def local_path(spec: ModelSpec) -> Path | None:
    """Return where a spec's file lies on this machine, None where it must be fetched."""
    return local_file(spec.source)


def local_file(source: str) -> Path | None:
    """Return where a file that a spec names lies on this machine, None where it must be fetched.

    Args:
        source: A path, an `embedded:`, `file:`, `https:` or `http:` URL.

    Raises:
        InvalidModelSource: A `file:` URL that names another host.
    """
    if source.startswith(EMBEDDED_SCHEME):
        return Path(__file__).with_name("models") / source.removeprefix(EMBEDDED_SCHEME)
    scheme = source.partition(":")[0].lower()
    if scheme in {"http", "https"} and "://" in source:
        return None
    if scheme != "file":
        return Path(source).expanduser()
    return Path(unquote(urlsplit(source).path))


def _custom(source: str, modality: str) -> ModelSpec:
    name = source.rstrip("/").rpartition("/")[2]
    if "://" in source:  # without its query and a user's password
        name = source.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition("@")[2]
    name = name or source
    return ModelSpec.model_validate({"name": name, "source": source, "modality": modality})


def _host_of_file_url(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError as exc:
        raise InvalidModelSource(f"{shorten(url)} is malformed: {exc}") from exc


def _looks_like_path(text: str) -> bool:
    return os.sep in text or text.endswith(".pte") or text.startswith((".", "~"))


def _unknown(name: str) -> UnknownModel:
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(MODELS)}"
    return UnknownModel(f"no model is named {shorten(name)}: {hint} (a path needs a / or .pte)")
