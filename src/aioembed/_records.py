"""JSON files that record what is known of another file, and the hash of a file."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Record", "hash_file", "read_record", "write_record"]


class Record(BaseModel):
    """What a JSON file says."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    format: Literal[1] = 1


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], path: Path) -> R | None:
    """Return the record at `path`, None where there is none or it is damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError):
        return None


def write_record(record: Record, path: Path) -> None:
    """Replace the record at `path` in one step."""
    draft = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file at `path` in hexadecimal digits. Blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
