"""A file on its way into the cache: appended to and hashed, until it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from .records import Journal, read_record, write_record

__all__ = ["Partial", "hash_file"]

_READ_BYTES = 1 << 20
_PUSH_BYTES = 8 << 20


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file at `path` in hexadecimal digits. Blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Partial:
    """A part that this process has claimed. Its methods block; call them one at a time.

    Attributes:
        folder: Where `data` and `journal.json` lie.
        journal: What the server said of the file, None before it said anything.
        received: Bytes in it.
    """

    def __init__(self, folder: Path, fd: int) -> None:
        self.folder = folder
        self.journal: Journal | None = None
        self.received: int = 0
        self._fd = fd
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "aioembed-hash")
        self._syncer = ThreadPoolExecutor(1, "aioembed-sync")
        self._syncing: Future[None] | None = None
        self._pushed = self._synced = 0

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the part in `folder` and hash what it has."""
        fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        part = cls(folder, fd)
        try:
            part.journal = read_record(Journal, folder / "journal.json")
            while block := os.read(fd, _READ_BYTES):
                part._hash.update(block)
                part.received += len(block)
        except BaseException:
            os.close(fd)
            raise
        return part

    @property
    def sha256(self) -> str:
        """Hash of the bytes received so far."""
        return self._hash.hexdigest()

    def note(self, journal: Journal) -> None:
        """Write down what the server said."""
        if journal != self.journal:
            write_record(journal, self.folder / "journal.json")
            self.journal = journal

    def restart(self, journal: Journal | None = None) -> None:
        """Drop what was received; `journal` describes what comes now."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.received = self._pushed = self._synced = 0
        self.journal = None
        if journal is None:
            (self.folder / "journal.json").unlink(missing_ok=True)
        else:
            self.note(journal)

    def append(self, blocks: Sequence[memoryview]) -> None:
        """Write and hash `blocks`, both at once; after an OSError the part can only be closed."""
        hashing = self._hasher.submit(self._hash_all, blocks)
        try:
            for block in blocks:
                self._write(block)
        finally:
            hashing.result()
        self._push()

    def _hash_all(self, blocks: Sequence[memoryview]) -> None:
        for block in blocks:
            self._hash.update(block)

    def _write(self, block: memoryview) -> None:
        while block:
            written = os.write(self._fd, block)
            self.received += written
            block = block[written:]

    def _push(self) -> None:
        """Have the disk take what came, beside the rest, so that `settle` has little to wait for.

        Raises:
            OSError: An earlier push failed.
        """
        if self.received - self._pushed < _PUSH_BYTES or sys.platform != "linux":
            return
        if self._syncing is None or self._syncing.done():
            self._finish_push()
            self._syncing = self._syncer.submit(os.fdatasync, self._fd)
            self._pushed = self.received

    def _finish_push(self) -> None:
        if self._syncing is not None:
            with self._dropping_what_the_disk_lost():
                self._syncing.result()
            self._synced = self._pushed

    @contextmanager
    def _dropping_what_the_disk_lost(self) -> Iterator[None]:
        """The system tells once that it lost bytes, and goes on showing them."""
        try:
            yield
        except OSError:
            os.ftruncate(self._fd, self._synced)
            raise

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes."""
        return os.pread(self._fd, count, 0)

    def free_bytes(self) -> int:
        """Space left on the disk."""
        return shutil.disk_usage(self.folder).free

    def settle(self) -> os.stat_result:
        """Bring everything to the disk.

        Raises:
            OSError: It could not take all; only what it has is left in the part.
        """
        self._finish_push()
        with self._dropping_what_the_disk_lost():
            os.fsync(self._fd)
        return os.fstat(self._fd)

    def close(self) -> None:
        """Close the file; the part stays where it is."""
        self._hasher.shutdown()
        self._syncer.shutdown()
        os.close(self._fd)
