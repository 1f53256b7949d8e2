"""One body at a time on the event loop, so that health checks are answered in between."""

from __future__ import annotations

import anyio
import anyio.lowlevel

__all__ = ["Pace"]


class Pace:
    """Lets callers go on one by one, each in another turn of the event loop, first come first.

    Bodies that are all checked in the same turn hold everything else up for the sum of their
    times; spread out, what comes between waits for one of them.
    """

    def __init__(self) -> None:
        self._lock = anyio.Lock(fast_acquire=True)

    async def turn(self) -> None:
        """Return when it is the caller's turn."""
        async with self._lock:
            await anyio.lowlevel.checkpoint()
