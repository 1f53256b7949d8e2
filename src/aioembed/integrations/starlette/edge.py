"""What every request passes: the body's cap, the drain, the figures, the errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.lowlevel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .bodies import capped
from .drain import Drain
from .limits import ServerLimits
from .metrics import Metrics
from .problems import problem_of

__all__ = ["Edge"]

_logger = logging.getLogger("aioembed.server")

_LINGER_SECONDS = 5.0


class Edge:
    """Middleware around all routes.

    Args:
        app: The routes.
        limits: How much one request may ask for.
        drain: Counts what runs, and refuses what comes once the server stops.
        metrics: Counts requests.
        paths: Those that have figures of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: ServerLimits,
        drain: Drain,
        metrics: Metrics,
        paths: frozenset[str],
    ) -> None:
        self._app = app
        self._limits = limits
        self._drain = drain
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply, body = _Reply(send), _Body(receive)
        with self._observed(scope, reply):
            try:
                await self._serve(scope, body, reply)
            except ClientDisconnect:
                _logger.debug("a client went away; its work was cancelled")
            except Exception as exc:  # noqa: BLE001  # answered, or raised again
                await self._answer(exc, scope, body, reply)

    async def _serve(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        receive = capped(scope, receive, self._limits)
        if scope["method"] == "POST":
            with self._drain.admitted():
                await self._app(scope, receive, reply)
        else:
            await self._app(scope, receive, reply)

    async def _answer(self, exc: Exception, scope: Scope, body: _Body, reply: _Reply) -> None:
        if reply.status is not None:
            raise exc
        problem = problem_of(exc)
        if problem.status == 500:  # noqa: PLR2004
            _logger.error("a request failed by a defect", exc_info=exc)
        if not body.is_complete:
            reply = _Lingering(reply, body)
        await problem.response()(scope, body, reply)

    @contextmanager
    def _observed(self, scope: Scope, reply: _Reply) -> Iterator[None]:
        path = _path(scope)
        path = path if path in self._paths else "other"
        method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST"} else "other"
        began = time.perf_counter()
        try:
            with self._metrics.running.track_inprogress():
                yield
        finally:
            status = "none" if reply.status is None else str(reply.status)
            self._metrics.requests.labels(method, path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)


class _Reply:
    """`send`, remembering the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Body:
    """`receive`, remembering whether everything has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.is_complete = not message.get("more_body", False)
        return message


class _Lingering(_Reply):
    """`send` that takes what the client still sends, so that it gets to read the answer.

    A connection that is closed with bytes unread is reset, and the answer is lost with it.
    """

    def __init__(self, send: Send, body: _Body) -> None:
        super().__init__(send)
        self._body = body

    async def __call__(self, message: Message) -> None:
        """Send a message; before the end of the answer, wait for the client's."""
        if message["type"] != "http.response.body":
            await super().__call__(message)
            return
        await super().__call__({**message, "more_body": True})
        with anyio.move_on_after(_LINGER_SECONDS):
            while not self._body.is_complete:
                await anyio.lowlevel.checkpoint()
                await self._body()
        await super().__call__({"type": "http.response.body", "body": b""})


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
