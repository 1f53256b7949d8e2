"""The fetcher's own HTTP client: httpx over connections that fill given memory."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.request import getproxies

import httpcore
import httpx
from anyio import to_thread

from .._http import new_client, read_certificates
from .connections import FillingBackend

__all__ = ["open_client"]


class _PoolTransport(httpx.AsyncHTTPTransport):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(verify=context)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, network_backend=FillingBackend()
        )


class _FillingTransport(httpx.AsyncBaseTransport):
    """Reads the certificates when the first request needs them, and in a thread."""

    def __init__(self) -> None:
        trusting_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._plain = _PoolTransport(trusting_nobody)
        self._secure: _PoolTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme != "https":
            return await self._plain.handle_async_request(request)
        secure = self._secure or await self._open()
        return await secure.handle_async_request(request)

    async def _open(self) -> _PoolTransport:
        context = await to_thread.run_sync(read_certificates)
        if self._secure is None:  # another request may have been quicker
            self._secure = _PoolTransport(context)
        return self._secure

    async def aclose(self) -> None:
        await self._plain.aclose()
        if self._secure is not None:
            await self._secure.aclose()


def _new_client() -> httpx.AsyncClient:
    """Make a client; through proxies httpx does it all itself."""
    return new_client() if getproxies() else new_client(transport=_FillingTransport())


@asynccontextmanager
async def open_client(given: httpx.AsyncClient | None) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the caller's client as it is, or one of our own that is closed afterwards."""
    if given is not None:
        yield given
        return
    async with await to_thread.run_sync(_new_client) as client:
        yield client
