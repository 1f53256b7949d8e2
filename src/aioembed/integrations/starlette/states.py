"""The models' states as server-sent events: the latest ones, at most ten times a second."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent

from .drain import Drain
from .models import ServedModels
from .problems import Problem

__all__ = ["StateStreams"]

_LEAST_SECONDS = 0.1
_SEND_SECONDS = 30.0


class StateStreams:
    """Streams states to any number of clients, up to a limit.

    Args:
        models: Whose states.
        drain: Ends the streams when the server stops.
        max_streams: Most of them at the same time.
    """

    def __init__(self, models: ServedModels, drain: Drain, *, max_streams: int) -> None:
        self._models = models
        self._drain = drain
        self._max_streams = max_streams
        self._open = 0

    def respond(self) -> EventSourceResponse:
        """Return a stream of `state` events, each a `States` in JSON.

        Raises:
            Problem: Too many streams are open.
        """
        if self._open >= self._max_streams:
            message = f"{self._open} streams are open, which is the most: try again later"
            raise Problem(429, message, code="too_many_streams")
        return EventSourceResponse(self._events(), send_timeout=_SEND_SECONDS)

    async def _events(self) -> AsyncGenerator[ServerSentEvent, None]:
        with self._watching() as watch:
            last = ""
            while True:
                stopping = self._drain.is_stopping
                changed = watch.renew()
                states = self._models.states(is_stopping=stopping).model_dump_json()
                if states != last:
                    yield ServerSentEvent(data=states, event="state")
                    last = states
                if stopping:
                    return
                await changed.wait()
                await anyio.sleep(_LEAST_SECONDS)

    @contextmanager
    def _watching(self) -> Iterator[_Watch]:
        watch = _Watch()
        self._open += 1
        try:
            with ExitStack() as stack:
                for one in self._models:
                    stack.callback(one.handle.subscribe(watch.tell))
                stack.callback(self._drain.subscribe(watch.tell))
                yield watch
        finally:
            self._open -= 1


class _Watch:
    """Tells one reader that something changed since it last looked."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def renew(self) -> anyio.Event:
        """Return an event that the next change sets."""
        self._changed = anyio.Event()
        return self._changed

    def tell(self) -> None:
        """Something changed."""
        self._changed.set()
