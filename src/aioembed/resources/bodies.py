"""Bodies of responses as they were sent, read into given memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

import anyio
import httpx

from .connections import Connection

__all__ = ["Body", "open_body"]


class Body(Protocol):
    """What is left of a response's body."""

    async def read_into(self, view: memoryview) -> int:
        """Read at least one byte into `view`; return how many, 0 at the end."""

    async def end(self) -> None:
        """End it, read to its end or not."""


def open_body(response: httpx.Response, *, decode: bool = False) -> Body:
    """Return the body of a response that was opened with `stream=True`.

    A plain body on a connection of our own client is read past the HTTP parser, which only copies
    it.

    Args:
        response: Its body is not read yet.
        decode: Whether to undo its Content-Encoding.
    """
    if decode or response.is_stream_consumed:
        return _ParsedBody(response.aiter_bytes())
    parsed = _ParsedBody(response.aiter_raw())
    connection = response.extensions.get("network_stream")
    length = response.headers.get("Content-Length", "")
    chunked = "Transfer-Encoding" in response.headers
    if isinstance(connection, Connection) and length.isdigit() and not chunked:
        return _PlainBody(parsed, connection, int(length))
    return parsed


class _ParsedBody:
    """A body that comes in chunks from httpx."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    @property
    def holds(self) -> int:
        """Bytes of the last chunk that are not read yet."""
        return len(self._rest)

    async def read_into(self, view: memoryview) -> int:
        while not self._rest:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def end(self) -> None:
        """Read on in vain.

        Closing the chunks would close only the outermost of httpx' nested generators, and trio
        warns of the others. A read that is cancelled unwinds them all.
        """
        with anyio.CancelScope() as scope, suppress(httpx.HTTPError, httpx.StreamError):
            scope.cancel()
            async for _ in self._chunks:
                pass


class _PlainBody:
    """A body of known length: what the parser has, its first chunk, then the connection's bytes.

    The parser never sees the end, so the connection is closed afterwards.
    """

    def __init__(self, parsed: _ParsedBody, connection: Connection, length: int) -> None:
        self._parsed = parsed
        self._connection = connection
        self._left = length
        self._begun = False

    async def read_into(self, view: memoryview) -> int:
        if not self._left:
            return 0
        if not self._begun or self._parsed.holds:
            self._begun = True
            count = await self._parsed.read_into(view)
        else:
            count = await self._connection.read_into(view[: self._left])
        if not count:
            raise httpx.RemoteProtocolError(f"closed with {self._left} bytes to come")
        self._left -= count
        return count

    async def end(self) -> None:
        await self._parsed.end()
