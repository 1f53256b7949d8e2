"""Where a model's files lie on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import IntegrityError, ModelFileUnreadable, shorten
from ..models import ModelSpec, local_file

__all__ = ["ModelFiles", "local_files"]

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model, on this machine.

    Attributes:
        model: The `.pte` file.
        sha256: Returns its hash; may have to read the file, so call it in a worker thread.
        tokenizer: The `tokenizer.json` of a text model, where one is known.
    """

    model: Path
    sha256: Callable[[], str]
    tokenizer: Path | None = None


def local_files(spec: ModelSpec, path: Path) -> ModelFiles:
    """Return the files of a model that lies at `path`; blocks where its hash must be checked.

    Raises:
        ModelFileUnreadable: The file cannot be read.
        IntegrityError: Its hash is not the one the spec gives.
    """
    if spec.sha256 is not None and (found := file_sha256(path)) != spec.sha256:
        raise IntegrityError(
            f"{shorten(path)} has sha256 {found[:12]}…, but {spec.name} is {spec.sha256[:12]}…: "
            "the file is damaged or another one; fetch or install it again"
        )
    return ModelFiles(path, partial(file_sha256, path), _tokenizer_of(spec, path))


def _tokenizer_of(spec: ModelSpec, path: Path) -> Path | None:
    """Return the tokenizer that a spec names, else the one beside the program."""
    if spec.tokenizer_source is not None:
        return local_file(spec.tokenizer_source)
    beside = path.with_name(_TOKENIZER)
    return beside if spec.modality == "text" and beside.is_file() else None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits; blocks.

    Raises:
        ModelFileUnreadable: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ModelFileUnreadable(
            f"cannot read the model at {shorten(path)}: {exc.strerror}"
        ) from exc
