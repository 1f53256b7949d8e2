"""HTTP/1.1 that does not wait for ever for a request's head, nor take an endless one."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["punctual_protocol"]

_MOST_HEAD_BYTES = 1 << 16


def punctual_protocol(head_timeout: float) -> type[HttpToolsProtocol]:
    """Return the protocol for `uvicorn.Config(http=...)`.

    Args:
        head_timeout: Seconds that a request's head may take to arrive.
    """
    return type("Punctual", (_PunctualProtocol,), {"head_timeout": head_timeout})


class _PunctualProtocol(HttpToolsProtocol):
    """uvicorn's protocol, closing connections whose next request's head is too slow or too long.

    Attributes:
        head_timeout: Seconds that a head may take, from the connection or from its first byte.
    """

    head_timeout: float
    _closing: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it makes a head too long."""
        waiting = self._closing
        super().data_received(data)
        if waiting is None or self._closing is not waiting:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Wait no longer, and begin to answer."""
        self._forget_head()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._closing is None:
            self._head_bytes = 0
            self._closing = self.loop.call_later(self.head_timeout, self._close)

    def _forget_head(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        """Close the connection, after the answer where one is under way."""
        answering: RequestResponseCycle | None = self.cycle
        if answering is None or answering.response_complete:
            self.transport.close()
        else:
            answering.keep_alive = False
