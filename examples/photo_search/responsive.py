"""What keeps the event loop free for keys while worker threads are busy."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH_SECONDS = 0.0015
COLLECTIONS = (300, 3, 4000)
DECODERS = max(1, (os.cpu_count() or 1) - 1)
NICENESS = 10
THREADS = Path("/proc/self/task")


@contextmanager
def responsive() -> Iterator[None]:
    """Let the loop's thread have the GIL soon, and no collection be long.

    For a process of one's own: both hold for all of it. A full collection looks at every module,
    and holds the keys up meanwhile; what was made until now is left out of all further ones.
    Under a shorter interval, painting gives the GIL away more often than it wins.
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*COLLECTIONS)
    gc.freeze()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


def put_workers_last(known: set[int]) -> None:
    """Let Linux give worker threads and the model's own the CPU only where no other wants it.

    Threads begin as the loop's thread is, and come as they are needed, so it has to be done again.

    Args:
        known: The threads that were looked at before; new ones are added.
    """
    if not THREADS.exists():
        return
    found = {int(thread.name) for thread in THREADS.iterdir()} - known
    known |= found
    kept = {
        thread.native_id
        for thread in threading.enumerate()
        if not thread.name.startswith("AnyIO worker thread")
    }
    for thread_id in found - kept:
        try:
            os.setpriority(os.PRIO_PROCESS, thread_id, NICENESS)
        except ProcessLookupError:  # it has ended meanwhile
            continue
