"""How a server stops: what runs is finished, what comes is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .problems import Problem

__all__ = ["Drain"]


class Drain:
    """Counts the requests that run, and turns new ones away once the server stops."""

    def __init__(self) -> None:
        self._running = 0
        self._is_stopping = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def running(self) -> int:
        """Requests that run now."""
        return self._running

    @property
    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._is_stopping

    def begin(self) -> None:
        """Refuse new requests from now on. Idempotent; called on the event loop's thread."""
        self._is_stopping = True
        for callback in tuple(self._callbacks):
            callback()

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback` when the server begins to stop; return what ends the subscription."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as running.

        Raises:
            Problem: The server stops.
        """
        if self._is_stopping:
            raise Problem(
                503,
                "the server is stopping: ask another one, or later",
                code="server_stopping",
                headers={"Connection": "close"},
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
