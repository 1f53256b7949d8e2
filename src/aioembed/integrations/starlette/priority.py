"""The event loop's thread before the others of its process, for the scheduler and for the GIL."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["LoopFirst"]

_THREADS = Path("/proc/self/task")
_SWITCH_SECONDS = 0.0005
_MOST = 19


class LoopFirst:
    """Gives every thread but the main one a lower priority, as they appear.

    Where decoding and inference keep all CPUs busy, the loop's thread would wait for its share
    of them like any other, several milliseconds each time. Threads inherit their niceness, the
    loop's thread starts most of them, and a process may not raise it again: so they are looked
    for. On systems other than Linux niceness belongs to the process, and nothing is done.

    Args:
        niceness: By how much theirs is above that of the main thread; 0 leaves them alone.
    """

    def __init__(self, niceness: int) -> None:
        self._wanted = niceness > 0 and _THREADS.is_dir()
        self._niceness = niceness
        self._main = str(threading.main_thread().native_id)
        self._seen: set[str] = set()

    def take_the_gil_sooner(self) -> None:
        """Let a thread that wants the GIL wait less long for one that computes in Python."""
        sys.setswitchinterval(_SWITCH_SECONDS)

    def look(self) -> None:
        """Lower the priority of the threads that are new."""
        if not self._wanted:
            return
        threads = {path.name for path in _THREADS.iterdir()} - {self._main}
        niceness = min(_MOST, os.getpriority(os.PRIO_PROCESS, int(self._main)) + self._niceness)
        for thread in threads - self._seen:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
        self._seen = threads
