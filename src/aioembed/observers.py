"""A value that can be watched: by callbacks, by async iterators, by waiting for a condition."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["Observable"]

T = TypeVar("T")

_logger = logging.getLogger("aioembed.observers")


class Observable(Generic[T]):
    """A current value, and those who want to know when it changes.

    Notifications are ordered and latest-wins: a callback takes no arguments and reads `value`,
    so however many changes fall together, what it reads is current. A change made inside a
    callback starts another round after the present one. All of it belongs to one event loop's
    thread.
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._callbacks: dict[object, Callable[[], object]] = {}
        self._changed: anyio.Event | None = None
        self._notifying = False
        self._stale = False

    @property
    def value(self) -> T:
        """The current value: the same object until something changes."""
        return self._value

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, without arguments, after every change.

        Args:
            callback: Reads `value` itself. If it raises, that is logged and disturbs nobody.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    async def wait_changed(self, seen: T) -> T:
        """Wait until the value is another object than `seen`, and return it."""
        while self._value is seen:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self._value

    def values(self, last: Callable[[T], bool]) -> AsyncIterator[T]:
        """Iterate over the current value and then the latest ones.

        A reader that is slower than the changes skips the ones in between and holds up nobody.
        Leaving the loop early needs no clean-up.

        Args:
            last: Whether nothing can follow a value; the iteration ends after it.
        """
        return _Values(self, last)

    def _publish(self, value: T) -> None:
        self._value = value
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self._stale = True
        if self._notifying:
            return
        self._notifying = True
        try:
            while self._stale:
                self._stale = False
                self._notify()
        finally:
            self._notifying = False

    def _notify(self) -> None:
        for key, callback in list(self._callbacks.items()):
            if key not in self._callbacks:
                continue
            try:
                callback()
            except Exception:
                _logger.exception("an observer raised; the others are told all the same")


class _Values(AsyncIterator[T]):
    """A reader's own place; no generator, so that leaving it early leaves nothing to finalise."""

    def __init__(self, source: Observable[T], last: Callable[[T], bool]) -> None:
        self._source = source
        self._last = last
        self._seen: list[T] = []

    async def __anext__(self) -> T:
        if not self._seen:
            self._seen = [self._source.value]
            await checkpoint()
            return self._seen[0]
        if self._last(self._seen[0]):
            raise StopAsyncIteration
        self._seen[0] = await self._source.wait_changed(self._seen[0])
        return self._seen[0]
