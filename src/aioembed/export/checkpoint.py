"""Checkpoints in transformers' format: found, checked against their config, and read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it
from typing import TYPE_CHECKING, Any, Literal, cast

from aioembed._records import hash_file
from aioembed.errors import CheckpointError, MissingExtra, shorten
from aioembed.export.families import (
    CLIP,
    DINOV2,
    SIGLIP,
    Family,
    Pixels,
    TextShape,
    Tower,
    VisionShape,
    read_family,
)
from aioembed.models import RNE_PREPROCESSING, Tokenization

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

__all__ = ["Checkpoint", "PixelSource", "locate", "read_tensors"]

PixelSource = Literal["checkpoint", "clip", "siglip", "dinov2", "rne"]

_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_TOKENIZER = "tokenizer.json"
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_HUB_FILES = ["*config.json", "model*.safetensors*", _PICKLED, _TOKENIZER, "README.md", "LICENSE*"]
_PIXELS = {
    "clip": CLIP.pixels,
    "siglip": SIGLIP.pixels,
    "dinov2": DINOV2.pixels,
    "rne": Pixels(RNE_PREPROCESSING, CLIP.pixels.mean, CLIP.pixels.std),
}
_KERNELS = {2: "bilinear", 3: "bicubic"}
_NOT_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|research[ -](only|purposes)", re.IGNORECASE)
_SHOWN_NAMES = 4

_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors are all there, in the shapes that its config states.

    Attributes:
        folder: Where it lies.
        family: Of the model.
        vision: The image tower; None where the checkpoint has none.
        text: The text tower; None where the checkpoint has none.
        tensors: By name, mapped from the files and as they are stored.
        fingerprint: SHA-256 over the names, dtypes, shapes and bytes of all tensors, 64
            hexadecimal digits; the same however they are spread over files.
    """

    folder: Path
    family: Family
    vision: VisionShape | None
    text: TextShape | None
    tensors: Mapping[str, torch.Tensor]
    fingerprint: str

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a folder and check what is in it.

        Args:
            folder: With `config.json` and `model.safetensors` (or its shards and their index, or
                `pytorch_model.bin`, of which nothing but tensors is unpickled).

        Raises:
            CheckpointError: A file is missing or unreadable, the model is of no known family, or
                tensors are missing, unknown, or of another shape than the config states.
            MissingExtra: torch, transformers or safetensors is not installed.
        """
        family, vision, text = read_family(folder)
        tensors = {
            name: tensor
            for name, tensor in read_tensors(*_weight_files(folder)).items()
            if not name.endswith("position_ids")
        }
        _check(folder, tensors, family, [shape for shape in (vision, text) if shape])
        return cls(folder, family, vision, text, tensors, _fingerprint(tensors))

    def scalar(self, name: str) -> float | None:
        """Return a tensor of one value, such as `logit_bias`; None where there is none."""
        tensor = self.tensors.get(name)
        return None if tensor is None else float(tensor.double().reshape(()))

    def shape(self, tower: Tower) -> VisionShape | TextShape:
        """Return the sizes of a tower.

        Raises:
            CheckpointError: The checkpoint does not have it.
        """
        other, shape = ("a text", self.vision) if tower == "image" else ("an image", self.text)
        if shape is None:
            raise CheckpointError(f"{shorten(self.folder)} has {other} tower only")
        return shape

    def pixels(self, source: PixelSource) -> Pixels:
        """Return how images are prepared.

        Args:
            source: `checkpoint` for what its own file says, or whose geometry to take. Mean and
                standard deviation are the file's wherever there is one.

        Raises:
            CheckpointError: There is no such file, or it says what no program can do.
        """
        file = next((p for n in _PREPROCESSORS if (p := self.folder / n).is_file()), None)
        if file is None:
            if source != "checkpoint":
                return _PIXELS[source]
            msg = f"{shorten(self.folder)} has no {_PREPROCESSORS[0]}, which says how images are "
            msg += f"prepared: put it there, or name a way ({', '.join(_PIXELS)}) with --preprocess"
            raise CheckpointError(msg)
        try:
            own = _read_pixels(json.loads(file.read_bytes()), self.family.pixels)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CheckpointError(f"{shorten(file)} cannot be followed: {exc}") from exc
        if source == "checkpoint":
            return own
        return Pixels(_PIXELS[source].preprocessing, own.mean, own.std)

    def tokenization(self) -> Tokenization | None:
        """Return how texts are padded; None in families that need no padding.

        Raises:
            CheckpointError: The tokenizer's files are missing, or name no padding.
        """
        if not self.family.padded:
            return None
        files = (self.folder / _TOKENIZER, self.folder / "tokenizer_config.json")
        try:
            tokenizer, config = (json.loads(file.read_bytes()) for file in files)
            token = config["pad_token"]
            content = token["content"] if isinstance(token, dict) else token
            ids = {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
            return Tokenization(lowercase=True, pad_id=ids[content])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            msg = f"{shorten(self.folder)} needs a {files[0].name} and a {files[1].name} that name "
            msg += f"the token that texts are padded with: {type(exc).__name__} {exc}"
            raise CheckpointError(msg) from exc

    @property
    def tokenizer_sha256(self) -> str | None:
        """SHA-256 of the folder's `tokenizer.json`, where it has one."""
        file = self.folder / _TOKENIZER
        return hash_file(file) if file.is_file() else None

    @property
    def licence(self) -> str | None:
        """What the model card or a licence file says of the weights' use, where there is one."""
        for file in sorted([*self.folder.glob("README.md"), *self.folder.glob("LICENSE*")]):
            text = file.read_text(encoding="utf-8", errors="replace")[:100_000]
            named = re.search(r"^license(?:_name)?: *(\S+)", text, re.MULTILINE)
            if named or file.name.startswith("LICENSE"):
                said = named[1] if named else file.name
                is_bound = _NOT_COMMERCIAL.search(named[1] if named else text)
                return said + (": not for commercial use" if is_bound else "")
        return None


def locate(weights: str | Path) -> Path:
    """Return the folder of a checkpoint, downloading it where `weights` is a hub id.

    Args:
        weights: A folder in transformers' format, or the id of a model on the Hugging Face hub,
            such as `openai/clip-vit-base-patch32`.

    Raises:
        CheckpointError: There is no such folder, and the hub could not deliver it either.
        MissingExtra: transformers is not installed.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    name = str(weights)
    if isinstance(weights, Path) or folder.exists() or name.startswith((".", "/", "~")):
        msg = (
            f"{shorten(name)} is not a folder; pass a checkpoint's folder or the id of a hub model"
        )
        raise CheckpointError(msg)
    try:
        import huggingface_hub
    except ImportError as exc:
        raise MissingExtra("transformers", "export") from exc
    try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES)
    except (OSError, ValueError, RuntimeError) as exc:
        msg = f"no folder is named {shorten(name)}, and the hub did not deliver it: {exc}"
        raise CheckpointError(msg) from exc
    return Path(found)


def read_tensors(*files: Path) -> dict[str, torch.Tensor]:
    """Map all tensors of some files; of pickled ones nothing but tensors is unpickled.

    Raises:
        CheckpointError: A file cannot be read, or holds more than tensors.
        MissingExtra: torch or safetensors is not installed.
    """
    try:
        import torch
        from safetensors import SafetensorError
    except ImportError as exc:
        raise MissingExtra("torch", "export") from exc
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        more = f"{shorten(file)} holds more than tensors, or is damaged; convert it to safetensors"
        try:
            tensors |= _read_file(file)
        except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as exc:
            msg = f"{shorten(file)} cannot be read, fetch the checkpoint again: {exc}"
            raise CheckpointError(msg) from exc
        except UnpicklingError as exc:
            raise CheckpointError(more) from exc
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise CheckpointError(more)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the tensors of a folder."""
    index = folder / f"{_SAFETENSORS}.index.json"
    if (folder / _SAFETENSORS).is_file():
        return [folder / _SAFETENSORS]
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as exc:
            raise CheckpointError(f"{shorten(index)} is not a safetensors index: {exc}") from exc
        return [folder / Path(str(name)).name for name in sorted(names)]
    if (folder / _PICKLED).is_file():
        return [folder / _PICKLED]
    raise CheckpointError(f"{shorten(folder)} has no weights: no {_SAFETENSORS}, no {_PICKLED}")


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of one file."""
    import torch
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    loaded: dict[str, torch.Tensor] = torch.load(
        file, map_location="cpu", weights_only=True, mmap=True
    )
    return loaded


def _check(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    family: Family,
    towers: list[VisionShape | TextShape],
) -> None:
    """Raise where the tensors are not those of the config."""
    if any(name.startswith(("visual.", "transformer.resblocks.")) for name in tensors):
        raise CheckpointError(
            f"{shorten(folder)} has open_clip's names of tensors; convert it to transformers' "
            "format first: python -m aioembed.export.open_clip FROM TO"
        )
    expected = dict(pair for tower in towers for pair in tower.tensors())
    missing = [name for name in expected if name not in tensors]
    extras = family.extras | (family.scalars if len(towers) > 1 else frozenset())
    expected |= {name: _squeezed(tensors[name]) for name in extras if name in tensors}
    problems = [
        ("lacks", missing),
        ("has unknown tensors:", [name for name in tensors if name not in expected]),
        (
            "has other shapes than its config says:",
            [
                f"{name} {tuple(tensors[name].shape)} for {shape}"
                for name, shape in expected.items()
                if name in tensors and _squeezed(tensors[name]) != shape
            ],
        ),
        (
            "has NaN or infinite values in",
            [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())],
        ),
    ]
    for what, names in problems:
        if names:
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            listed = ", ".join(names[:_SHOWN_NAMES])
            raise CheckpointError(f"the checkpoint {shorten(folder)} {what} {listed}{more}")


def _fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over all tensors in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(cast("Buffer", tensor.contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _squeezed(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a shape without the axes of length 1 in front, which mean nothing."""
    shape = list(tensor.shape)
    while shape and shape[0] == 1:
        del shape[0]
    return tuple(shape)


def _read_pixels(config: dict[str, Any], usual: Pixels) -> Pixels:
    """Read a preprocessor's config, in which the family's usual values may be left out.

    Raises:
        ValueError: It says what no program can do.
        KeyError: A value is missing.
        TypeError: A value is of another type.
        AttributeError: Likewise.
    """
    config = config.get("image_processor") or config
    mean, std = _triple(config, "image_mean", usual.mean), _triple(config, "image_std", usual.std)
    if min(std) <= 0:
        raise ValueError("image_std must be positive")
    if not config.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scales = config.get("do_rescale", True) and config.get("rescale_factor", 1 / 255)
    if not math.isclose(scales, 1 / 255):
        raise ValueError("pixels must be scaled by 1 / 255")
    if "size" not in config:
        return Pixels(usual.preprocessing, mean, std)
    if not config.get("do_resize", True):
        raise ValueError("images must be resized: do_resize is false")
    resample = config.get("resample", 3)
    if resample not in _KERNELS:
        raise ValueError(f"resample {resample} is neither bilinear (2) nor bicubic (3)")
    size, crop = config["size"], config.get("crop_size")
    edge = size if isinstance(size, int) else size.get("shortest_edge")
    crops = config.get("do_center_crop", crop is not None)
    to: Any = crop if crops else size
    height, width = (to, to) if isinstance(to, int) else (to["height"], to["width"])
    if height != width or (size != to if edge is None else not crops):
        raise ValueError(f"size {size} and crop_size {crop} do not end in one square")
    changes: dict[str, Any] = {"height": height, "width": width}
    changes |= {"interpolation": _KERNELS[resample], "antialias": True, "shortest_edge": None}
    changes["resize"] = "stretch" if edge is None else "crop"
    if edge not in {None, height}:
        changes["shortest_edge"] = edge
    return Pixels(usual.preprocessing.model_copy(update=changes), mean, std)


def _triple(config: dict[str, Any], name: str, usual: _Triple) -> _Triple:
    """Read a value per channel."""
    values = tuple(map(float, config.get(name, usual)))
    if len(values) != 3:  # noqa: PLR2004
        raise ValueError(f"{name} must be three values")
    return (values[0], values[1], values[2])
