"""HTTP/1.1 that does not wait for ever for a request's head."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["punctual_protocol"]


def punctual_protocol(head_timeout: float) -> type[H11Protocol]:
    """Return the protocol for `uvicorn.Config(http=...)`.

    Args:
        head_timeout: Seconds that a request's head may take to arrive.
    """
    return type("Punctual", (_PunctualProtocol,), {"head_timeout": head_timeout})


class _PunctualProtocol(H11Protocol):
    """uvicorn's protocol, closing connections whose next request's head comes too slowly.

    Attributes:
        head_timeout: Seconds that a head may take, from the connection or from its first byte.
    """

    head_timeout: float
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what came, and see whether a head is under way."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._forget_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._closing is None:
            self._closing = self.loop.call_later(self.head_timeout, self.transport.close)

    def _forget_head(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
