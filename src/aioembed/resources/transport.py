"""The fetcher's own HTTP client: httpx over connections that fill given memory."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from urllib.request import getproxies

import httpcore
import httpx
from anyio import to_thread

from ..errors import InvalidConfig
from .connections import FillingBackend

__all__ = ["open_client"]


@cache
def _ssl_context(file: str | None, folder: str | None) -> ssl.SSLContext:  # noqa: ARG001
    """One context for each setting of SSL_CERT_FILE and SSL_CERT_DIR: making one takes 0.1 s."""
    return httpx.create_ssl_context()


class _FillingTransport(httpx.AsyncHTTPTransport):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(verify=context)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, network_backend=FillingBackend()
        )


def _new_client() -> httpx.AsyncClient:
    """Make a client; through proxies httpx does it all itself."""
    try:
        context = _ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        transport = None if getproxies() else _FillingTransport(context)
        return httpx.AsyncClient(
            transport=transport, verify=context, headers={"User-Agent": "aioembed"}
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as exc:
        raise InvalidConfig(
            f"the proxy or certificate settings of the environment cannot be used: {exc}; see "
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from exc


@asynccontextmanager
async def open_client(given: httpx.AsyncClient | None) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the caller's client as it is, or one of our own that is closed afterwards."""
    if given is not None:
        yield given
        return
    async with await to_thread.run_sync(_new_client) as client:
        yield client
