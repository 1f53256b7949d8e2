"""A file on its way into the cache: claimed, appended to and hashed, until it is complete.

An entry's folder holds what unfinished downloads left:

```
partial/                       an interrupted download: data, journal.json
partial.HOST.PID.RANDOM/       the same while that process writes to it
```

A process takes one over by renaming its folder, which succeeds for one process only. So no two
ever write to one file, even where file locks do nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import NonNegativeInt

from .._records import Record, read_record, write_record

__all__ = [
    "Journal",
    "Partial",
    "delete_folder",
    "idle_partials",
    "largest_partial",
    "partial_folders",
]

_READ_BYTES = 1 << 20
_ABANDONED_SECONDS = 24 * 3600.0
_IDLE = "partial"
_HOST = re.sub("[^A-Za-z0-9-]", "_", platform.node()) or "host"
_CLAIMED = re.compile(r"partial\.([A-Za-z0-9_-]+)\.(\d{1,9})\.([0-9a-z]+)")


class Journal(Record):
    """What the server said of a file that is not complete yet."""

    url: str
    validator: str | None = None
    total: NonNegativeInt | None = None
    linked_sha256: str | None = None
    linked_trusted: bool = False
    commit: str | None = None


class Partial:
    """A partial file that this process has claimed. Its methods block; call one at a time.

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

    @classmethod
    def claim(cls, entry: Path) -> Self:
        """Take over the largest partial file in the folder `entry`, or begin one.

        Others that nobody writes to are deleted.
        """
        mine = entry / f"{_IDLE}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"
        for folder in sorted(idle_partials(entry), key=_data_size, reverse=True):
            if mine.exists():
                delete_folder(folder)
            else:
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(mine)
        mine.mkdir(exist_ok=True)
        return cls.open(mine)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the one in `folder` and hash what it has."""
        fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        partial = cls(folder, fd)
        try:
            partial.journal = read_record(Journal, folder / "journal.json")
            while block := os.read(fd, _READ_BYTES):
                partial._hash.update(block)
                partial.received += len(block)
        except BaseException:
            os.close(fd)
            raise
        return partial

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
        self.received = 0
        self.journal = None
        if journal is None:
            (self.folder / "journal.json").unlink(missing_ok=True)
        else:
            self.note(journal)

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write and hash `chunks`; after an OSError it can only be released."""
        # In one piece: every call takes the interpreter's lock from the event loop once more.
        view = memoryview(b"".join(chunks))
        while view:
            written = os.write(self._fd, view)
            self._hash.update(view[:written])
            self.received += written
            view = view[written:]

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes."""
        return os.pread(self._fd, count, 0)

    def free_bytes(self) -> int:
        """Space left on the disk."""
        return shutil.disk_usage(self.folder).free

    def settle(self) -> os.stat_result:
        """Bring everything to the disk.

        Raises:
            OSError: It could not take all. The system says so once and goes on showing the bytes
                it lost, so none are kept.
        """
        try:
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, 0)
            raise
        return os.fstat(self._fd)

    def release(self) -> None:
        """Close it, and leave it for a later download; of two, the one that was there stays."""
        os.close(self._fd)
        if not self.folder.is_dir():
            return
        try:
            self.folder.rename(self.folder.with_name(_IDLE))
        except OSError:
            delete_folder(self.folder)


def partial_folders(entry: Path) -> list[Path]:
    """Every partial file in the folder `entry`, written to or not."""
    try:
        children = list(entry.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = [path for path in children if path.name == _IDLE or _CLAIMED.fullmatch(path.name)]
    return [path for path in named if path.is_dir() and not path.is_symlink()]


def idle_partials(entry: Path) -> list[Path]:
    """Those that no living process writes to."""
    return [folder for folder in partial_folders(entry) if _is_idle(folder)]


def largest_partial(entry: Path) -> tuple[int, int | None]:
    """Return the bytes of the largest partial file, and the total that a server gave."""
    folders = partial_folders(entry)
    journals = [read_record(Journal, folder / "journal.json") for folder in folders]
    totals = [journal.total for journal in journals if journal and journal.total is not None]
    return max(map(_data_size, folders), default=0), max(totals, default=None)


def delete_folder(folder: Path) -> None:
    """Delete a folder of an entry; it is renamed first, so that nobody claims half of it."""
    deleted = folder.with_name(f"deleted.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(deleted)
        shutil.rmtree(deleted)


def _data_size(folder: Path) -> int:
    try:
        return (folder / "data").stat().st_size
    except OSError:
        return 0


def _is_idle(folder: Path) -> bool:
    claim = _CLAIMED.fullmatch(folder.name)
    if claim is None:
        return True
    if claim[1] == _HOST and not _is_alive(int(claim[2])):
        return True
    try:
        written_at = max(folder.stat().st_mtime, (folder / "data").stat().st_mtime)
    except OSError:
        return False
    return time.time() - written_at > _ABANDONED_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
