"""What keeps the event loop free for keys while worker threads are busy."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_SECONDS = 0.0015
COLLECTIONS = (300, 3, 4000)


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
