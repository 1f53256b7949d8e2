"""What is known of a model's file on this machine: its hash, and that it passed its trial."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ._records import Record, hash_file, read_record, write_record
from .errors import ModelFileUnreadable, shorten

__all__ = ["LocalFile"]

_logger = logging.getLogger("aioembed.handle")

_FOLDER = ".files"


class _Record(Record):
    """What is known of the file at a path, for as long as inode, size and time are the same.

    Attributes:
        path: Resolved.
        inode: Of the file.
        size: Bytes.
        mtime_ns: Time of its last change, in nanoseconds.
        sha256: Of its content, None until it was needed.
        tried: Version of the runtime under which it passed a trial run, None if it did not.
    """

    path: str
    inode: int
    size: int
    mtime_ns: int
    sha256: str | None = None
    tried: str | None = None

    def is_same_file(self, other: _Record) -> bool:
        facts = {"path", "inode", "size", "mtime_ns"}
        return self.model_dump(include=facts) == other.model_dump(include=facts)


class LocalFile:
    """A model's file, and its record in the cache folder. All methods block.

    The record is JSON, one for each path. Where it cannot be written, what it would say is found
    out again at the next load.

    Args:
        path: Of the file.
        cache: The cache folder.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self._folder = cache / _FOLDER
        self._known: _Record | None = None

    def sha256(self) -> str:
        """Return the hash of the file's content, which is read where no record has it.

        Raises:
            ModelFileUnreadable: The file cannot be read.
        """
        record = self._record()
        if record.sha256 is None:
            try:
                digest = hash_file(self.path)
            except OSError as exc:
                raise self._unreadable(exc) from exc
            if not self._seen().is_same_file(record):  # written to meanwhile
                return digest
            record = self._write(record.model_copy(update={"sha256": digest}))
        return str(record.sha256)

    def was_tried(self, version: str) -> bool:
        """Whether the file passed a trial run under that version of the runtime."""
        return self._record().tried == version

    def mark_tried(self, version: str) -> None:
        """Record that the file passed a trial run."""
        self._write(self._record().model_copy(update={"tried": version}))

    def _record(self) -> _Record:
        """Return what is known of the file as it is now."""
        seen = self._seen()
        if self._known is None or not self._known.is_same_file(seen):
            self._known = self._read(seen) or seen
        return self._known

    def _seen(self) -> _Record:
        try:
            place, status = self.path.resolve(), self.path.stat()
        except OSError as exc:
            raise self._unreadable(exc) from exc
        return _Record(
            path=str(place),
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
        )

    def _read(self, seen: _Record) -> _Record | None:
        try:
            record = read_record(_Record, self._file(seen))
        except OSError:
            return None
        return record if record is not None and record.is_same_file(seen) else None

    def _write(self, record: _Record) -> _Record:
        self._known = record
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_record(record, self._file(record))
        except OSError:
            _logger.debug("what is known of %s cannot be kept", shorten(self.path), exc_info=True)
        return record

    def _file(self, record: _Record) -> Path:
        return self._folder / f"{hashlib.sha256(record.path.encode()).hexdigest()[:32]}.json"

    def _unreadable(self, error: OSError) -> ModelFileUnreadable:
        return ModelFileUnreadable(f"cannot read the model at {shorten(self.path)}: {error}")
