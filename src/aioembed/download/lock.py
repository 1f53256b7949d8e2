"""One downloader per file across processes and event loops."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import filelock
from anyio import to_thread

__all__ = ["process_lock", "try_lock"]

_logger = logging.getLogger("aioembed.download")

_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 0.5


def _new_lock(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(str(path), thread_local=False)


def _acquire(lock: filelock.BaseFileLock) -> bool:
    """Try once; a file system without locks counts as success, since locks are a courtesy."""
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError) as exc:
        _logger.warning(
            "no file lock at %s (%s): another process may fetch too", lock.lock_file, exc
        )
    return True


@asynccontextmanager
async def process_lock(path: Path, on_wait: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Hold the lock at `path`; `on_wait` is called each time it is found taken.

    The lock saves transfers. Files stay intact without it: each writer has its
    own partial file.
    """
    lock = _new_lock(path)
    pause = _FIRST_POLL_SECONDS
    try:
        while not await to_thread.run_sync(_acquire, lock):
            await on_wait()
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL_SECONDS)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(lock.release)


def try_lock(path: Path) -> filelock.BaseFileLock | None:
    """Take the lock at `path` if it is free. Blocks briefly; `release()` what it returns."""
    lock = _new_lock(path)
    return lock if _acquire(lock) else None
