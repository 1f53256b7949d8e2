"""CLIP checkpoints in transformers' format: found, checked against their config, and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it
from typing import TYPE_CHECKING, cast

from aioembed.errors import CheckpointError, MissingExtra, shorten
from aioembed.export.clip.config import read_shapes
from aioembed.export.clip.shapes import TextShape, VisionShape

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

__all__ = ["Checkpoint", "locate"]

_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_TOKENIZER = "tokenizer.json"
_PREPROCESSOR = "preprocessor_config.json"
_HUB_FILES = ["config.json", "model*.safetensors*", _PICKLED, _TOKENIZER, _PREPROCESSOR]
_LOGIT_SCALE = "logit_scale"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SHOWN_NAMES = 4

_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP checkpoint whose tensors are all there, in the shapes that its config tells.

    Attributes:
        folder: Where it lies.
        vision: Sizes of the image tower; None where the checkpoint has none.
        text: Sizes of the text tower; None where the checkpoint has none.
        tensors: By name, mapped from the files and as they are stored.
        fingerprint: SHA-256 over the names, dtypes, shapes and bytes of all tensors, 64
            hexadecimal digits; the same however they are spread over files.
        mean: Per channel, of values 0..1.
        std: Likewise.
        tokenizer_sha256: Of the folder's `tokenizer.json`, where it has one.
    """

    folder: Path
    vision: VisionShape | None
    text: TextShape | None
    tensors: Mapping[str, torch.Tensor]
    fingerprint: str
    mean: _Triple
    std: _Triple
    tokenizer_sha256: str | None

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a folder and check what is in it.

        Args:
            folder: With `config.json` and `model.safetensors` (or its shards and their index, or
                `pytorch_model.bin`, of which nothing but tensors is unpickled).

        Raises:
            CheckpointError: A file is missing or unreadable, the model is not CLIP, or tensors
                are missing, unknown, or of another shape than the config tells.
            MissingExtra: torch, transformers or safetensors is not installed.
        """
        vision, text = read_shapes(folder / "config.json")
        tensors = {
            name: tensor
            for name, tensor in _read_tensors(folder).items()
            if not name.endswith(".position_ids")
        }
        _check(folder, tensors, vision, text)
        mean, std = _pixel_statistics(folder / _PREPROCESSOR)
        tokenizer = folder / _TOKENIZER
        return cls(
            folder=folder,
            vision=vision,
            text=text,
            tensors=tensors,
            fingerprint=_fingerprint(tensors),
            mean=mean,
            std=std,
            tokenizer_sha256=_sha256(tokenizer) if tokenizer.is_file() else None,
        )

    @property
    def logit_scale(self) -> float | None:
        """CLIP's factor on cosine similarities, where the checkpoint has it."""
        tensor = self.tensors.get(_LOGIT_SCALE)
        return None if tensor is None else float(tensor.double().exp())

    def image_tower(self) -> VisionShape:
        """Return the image tower's sizes.

        Raises:
            CheckpointError: The checkpoint has none.
        """
        if self.vision is None:
            raise CheckpointError(f"{shorten(self.folder)} has a text tower only")
        return self.vision

    def text_tower(self) -> TextShape:
        """Return the text tower's sizes.

        Raises:
            CheckpointError: The checkpoint has none.
        """
        if self.text is None:
            raise CheckpointError(f"{shorten(self.folder)} has an image tower only")
        return self.text


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
        msg = f"{shorten(name)} is no folder; pass a checkpoint's folder or the id of a hub model"
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


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Map all tensors of a folder."""
    try:
        import torch
        from safetensors import SafetensorError
    except ImportError as exc:
        raise MissingExtra("torch", "export") from exc
    files = _weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= _read_file(file)
        except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as exc:
            msg = f"{shorten(file)} cannot be read, fetch the checkpoint again: {exc}"
            raise CheckpointError(msg) from exc
        except UnpicklingError as exc:
            msg = (
                f"{shorten(file)} holds more than tensors, or is damaged; convert it to safetensors"
            )
            raise CheckpointError(msg) from exc
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointError(
            f"{shorten(folder)} holds more than tensors; convert it to safetensors"
        )
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
            raise CheckpointError(f"{shorten(index)} is no index of safetensors: {exc}") from exc
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
    vision: VisionShape | None,
    text: TextShape | None,
) -> None:
    """Raise where the tensors are not those of the config."""
    expected: dict[str, tuple[int, ...]] = {}
    for tower in (vision, text):
        expected |= dict(tower.tensors()) if tower else {}
    missing = [name for name in expected if name not in tensors]
    if vision and text:
        expected[_LOGIT_SCALE] = ()
    problems = [
        ("lacks", missing),
        ("has unknown tensors:", [name for name in tensors if name not in expected]),
        (
            "has other shapes than its config tells:",
            [
                f"{name} {tuple(tensors[name].shape)} for {shape}"
                for name, shape in expected.items()
                if name in tensors and tuple(tensors[name].shape) != shape
            ],
        ),
        (
            "has values that are no numbers in",
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


def _pixel_statistics(file: Path) -> tuple[_Triple, _Triple]:
    """Return mean and std of a `preprocessor_config.json`, or CLIP's own where there is none."""
    if not file.is_file():
        return _CLIP_MEAN, _CLIP_STD
    try:
        config = json.loads(file.read_bytes())
        mean, std = (tuple(map(float, config[f"image_{what}"])) for what in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{shorten(file)} has no readable image_mean and image_std") from exc
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:  # noqa: PLR2004
        raise CheckpointError(f"{shorten(file)}: image_mean and image_std are three values each")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
