"""The JSON records beside cached and partial files."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

__all__ = ["Journal", "Sidecar", "read_record", "write_record"]


class _Record(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    format: Literal[1] = 1


class Sidecar(_Record):
    """What is known of a file in the cache; `mtime_ns` with `size` tells cheaply if it changed."""

    url: str
    file: str
    size: NonNegativeInt
    sha256: str
    mtime_ns: int
    etag: str | None = None
    commit: str | None = None
    fetched_at: datetime
    trusted: bool = False
    probed: bool = False


class Journal(_Record):
    """What the server said of a file that is not whole yet."""

    url: str
    validator: str | None = None
    total: NonNegativeInt | None = None
    linked_sha256: str | None = None
    linked_trusted: bool = False
    commit: str | None = None


R = TypeVar("R", bound=_Record)


def read_record(kind: type[R], path: Path) -> R | None:
    """Return the record at `path`, None where there is none or it is damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def write_record(record: _Record, path: Path) -> None:
    """Replace the record at `path` in one step."""
    draft = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
