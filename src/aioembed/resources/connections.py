"""Connections that fill memory of the reader's choice, in few large reads."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.lowlevel
import httpcore

__all__ = ["Connection", "FillingBackend"]

_READ_BYTES = 1 << 18


class Connection(httpcore.AsyncNetworkStream):
    """A stream of httpcore's that can also be read into given memory."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read up to 256 KiB at once, where httpcore asks for 64 KiB."""
        return await self._stream.read(max(max_bytes, _READ_BYTES), timeout)

    async def read_into(self, view: memoryview) -> int:
        """Read what has arrived, at least one byte, into `view`; return how many, 0 at the end.

        The caller bounds the wait. A read that is cancelled loses nothing.

        Raises:
            httpcore.ReadError: The connection broke.
        """
        chunk = await self._stream.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a connection that goes on encrypted."""
        return Connection(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  # httpcore's
        """What httpcore wants to know of the socket."""
        return self._stream.get_extra_info(info)


class _PlainConnection(Connection):
    """Reads from the socket itself, which makes no object for each piece that arrives.

    The stream below connects, writes and closes, and goes on alone where TLS begins. It never
    reads: a second descriptor of its socket does, since an event loop keeps its own to itself.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        super().__init__(stream)
        self._socket: socket.socket | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        buffer = memoryview(bytearray(max(max_bytes, _READ_BYTES)))
        try:
            with anyio.fail_after(timeout):
                count = await self.read_into(buffer)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(*exc.args) from exc
        return bytes(buffer[:count])

    async def read_into(self, view: memoryview) -> int:
        await anyio.lowlevel.checkpoint()
        try:
            while True:
                try:
                    return self._own_socket().recv_into(view)
                except BlockingIOError:
                    await anyio.wait_readable(self._own_socket())
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def _own_socket(self) -> socket.socket:
        if self._socket is None:
            descriptor = self._stream.get_extra_info("socket").fileno()
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self._socket.setblocking(False)
        return self._socket

    async def aclose(self) -> None:
        if self._socket is not None:
            self._socket.close()
        await super().aclose()


class FillingBackend(httpcore.AnyIOBackend):
    """Makes a `Connection` wherever a client connects by TCP."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; addresses are raced as anyio does it."""
        return _PlainConnection(
            await super().connect_tcp(host, port, timeout, local_address, socket_options)
        )
