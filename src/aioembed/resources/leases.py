"""Cached files that are in use."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Lease", "is_leased"]


class Lease:
    """Marks a cached file as in use until `release`, so that `Cache.delete` refuses.

    It is a shared `flock` on the file, seen by every process and gone with its holder. Where the
    file system has no locks, deleting goes through, which is harmless on POSIX: a mapped file
    lives on until it is unmapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        _flock(self._fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the file free; more calls do nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def is_leased(path: Path) -> bool:
    """Whether anyone has a lease on the file at `path`. Blocks briefly."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    """Try for a lock; False if someone else's is in the way, True also where there are none."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
