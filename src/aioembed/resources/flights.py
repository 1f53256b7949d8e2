"""One transfer per file in an event loop, however many tasks want it.

There is no task of its own: whoever holds the baton transfers, the others wait for it and see the
progress. If the holder leaves early, the next one goes on from the part it left.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import RunVar

from aioembed.errors import AioembedError

from .resource import CachedFile
from .transfer import Report

__all__ = ["Key", "share"]

Key = tuple[str, str, str | None, int | None]


class _Flight:
    def __init__(self) -> None:
        self.baton = anyio.Lock()
        self.watchers: list[Report] = []
        self.landed: CachedFile | None = None
        self.failure: AioembedError | None = None
        self._latest: tuple[int, int | None] | None = None

    def report(self, received: int, total: int | None) -> None:
        self._latest = received, total
        for watcher in tuple(self.watchers):
            watcher(received, total)

    @asynccontextmanager
    async def watched(self, watcher: Report) -> AsyncIterator[None]:
        self.watchers.append(watcher)
        try:
            if self._latest is not None:
                watcher(*self._latest)
            yield
        finally:
            self.watchers.remove(watcher)


_flights: RunVar[dict[Key, _Flight]] = RunVar("aioembed_flights")


def _flights_of_loop() -> dict[Key, _Flight]:
    try:
        return _flights.get()
    except LookupError:
        flights: dict[Key, _Flight] = {}
        _flights.set(flights)
        return flights


async def share(
    key: Key, watcher: Report, transfer: Callable[[Report], Awaitable[CachedFile]]
) -> CachedFile:
    """Return what `transfer` returns, or what the transfer under way for `key` does.

    A failure is everyone's who was waiting; whoever comes later tries anew.

    Args:
        key: What is fetched.
        watcher: Sees the progress, whoever transfers.
        transfer: Does it; is handed what to report to.
    """
    flights = _flights_of_loop()
    flight = flights.setdefault(key, _Flight())
    try:
        async with flight.watched(watcher), flight.baton:
            if flight.failure is not None:
                raise copy.copy(flight.failure) from flight.failure
            if flight.landed is None:
                flight.landed = await transfer(flight.report)
            return flight.landed
    except AioembedError as exc:
        flight.failure = flight.failure or exc
        raise
    finally:
        ended = flight.landed is not None or flight.failure is not None
        if (ended or not flight.watchers) and flights.get(key) is flight:
            del flights[key]
