"""How many threads programs run on: one pool for all, sized once before the first load."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

from .._cpus import available_cpus
from ..errors import InvalidConfig
from ._extension import load_failure
from ._extension import native as _native

__all__ = [
    "NICENESS",
    "set_thread_count",
    "thread_count",
    "use_pool",
    "wants_single_thread",
]

# Above that of who loads a program: more costs throughput where others compute too; at 0 the event
# loop has to wait. Elsewhere it is that of the process.
NICENESS = 1 if sys.platform == "linux" else 0

_MOST_THREADS = 256


class _Pool:
    """The count that was asked for, and whether a load has fixed it.

    A process that was forked from one with a pool has none: the pool's threads stayed behind, and
    work that is given to them never ends. Its programs run on their own threads alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested: int | None = None
        self._in_use = False
        self.is_left_behind = False

    def before_fork(self) -> None:
        """No run may be in progress: the child would inherit the locks it holds."""
        self._lock.acquire()
        _native.pause_workers()

    def after_fork(self, *, in_child: bool) -> None:
        _native.resume_workers(in_child=in_child)
        self.is_left_behind |= in_child and self._in_use
        self._lock.release()

    def request(self, count: int) -> None:
        with self._lock:
            if not self._in_use:
                self._requested = count
            elif self.is_left_behind and count != 1:
                raise InvalidConfig(
                    f"{count} threads cannot be had in this process: it was forked from one that "
                    "had loaded a program; start processes by `spawn` or `forkserver`"
                )
            elif count != self._count():
                raise InvalidConfig(
                    f"{count} threads cannot be had any more: a program is loaded on "
                    f"{self._count()}; set the count before the first load"
                )

    def count(self) -> int:
        with self._lock:
            return self._count()

    def use(self) -> None:
        with self._lock:
            if self._in_use:
                return
            wanted = self._wanted()
            if not _native.resize_pool(wanted, niceness=NICENESS):
                raise InvalidConfig(
                    f"no pool of {wanted} threads can be made: set a lower count, and see that "
                    "/proc/cpuinfo can be read; see `aioembed doctor`"
                )
            self._in_use = True

    def _count(self) -> int:
        if self.is_left_behind:
            return 1
        return _native.pool_thread_count() if self._in_use else self._wanted()

    def _wanted(self) -> int:
        return self._requested or available_cpus()


_pool = _Pool()
if load_failure() is None:
    os.register_at_fork(
        before=_pool.before_fork,
        after_in_parent=partial(_pool.after_fork, in_child=False),
        after_in_child=partial(_pool.after_fork, in_child=True),
    )


def set_thread_count(count: int) -> None:
    """Choose how many threads the programs of this process share.

    Args:
        count: Threads, from 1 to 256. Without a choice it is `available_cpus()`.

    Raises:
        InvalidConfig: Not in that range, or a program was loaded on another count already:
            XNNPACK keeps the pool that it finds at its first load.
    """
    if not 1 <= count <= _MOST_THREADS:
        raise InvalidConfig(f"threads must be from 1 to {_MOST_THREADS}, not {count}")
    _pool.request(count)


def thread_count() -> int:
    """Return how many threads the programs of this process share, or will at the first load."""
    return _pool.count()


def wants_single_thread(threads: int | None) -> bool:
    """Whether a program is to run on its own thread alone.

    Raises:
        InvalidConfig: Neither that nor the shared pool was asked for.
    """
    if threads == 1 or (threads is None and _pool.is_left_behind):
        return True
    if threads is None or threads == thread_count():
        return False
    raise InvalidConfig(
        f"a program runs on 1 thread or on all {thread_count()} of the shared pool, not on "
        f"{threads}; set_thread_count() sizes the pool before the first load"
    )


def use_pool() -> None:
    """Start the pool, once; from now on its size and its threads' priority are fixed.

    Raises:
        InvalidConfig: No pool of that size can be made.
    """
    _pool.use()
