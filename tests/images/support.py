"""Drawn images in every format, and a scripted web server on loopback."""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpcore
import numpy as np
from anyio.streams.tls import TLSListener
from PIL import Image

PUBLIC = "93.184.216.34"
"""An ordinary public address; tests lead connections to it to loopback."""


def drawn(width: int = 61, height: int = 47) -> Image.Image:
    """A smooth scene without symmetry, so that turns and cuts show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    blue = 127 + 120 * np.sin(x / 7) * np.cos(y / 5)
    return Image.fromarray(np.stack((red, green, blue), -1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@dataclass
class Web:
    """A server on loopback that answers with scripted bytes, and counts its connections."""

    port: int
    answers: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    connections: int = 0

    def answer(self, path: str, body: bytes, *headers: str, status: str = "200 OK") -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        self.answers[path] = "\r\n".join(lines).encode() + body

    def redirect(self, path: str, location: str) -> None:
        self.answer(path, b"", f"Location: {location}", status="302 Found")


class ToLoopback(httpcore.AnyIOBackend):
    """Makes the connections of tests: whatever the address, to the server on loopback."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[str] = []
        """The addresses that were connected to."""

    async def connect_tcp(
        self, host: str, port: int, *options: Any, **named: Any
    ) -> httpcore.AsyncNetworkStream:
        self.seen.append(host)
        return await super().connect_tcp("127.0.0.1", self.port, *options, **named)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    web = Web(port)

    async def serve(stream: anyio.abc.ByteStream) -> None:
        web.connections += 1
        async with stream:
            try:
                while True:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += await stream.receive()
                    web.requests.append(head.decode())
                    path = head.split(b" ", 2)[1].decode()
                    answer = web.answers.get(path)
                    if answer is None:
                        await anyio.sleep_forever()
                    else:
                        await stream.send(answer)
                    if b"Content-Length" not in (answer or b""):
                        return
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            (TLSListener(listener, tls, standard_compatible=False) if tls else listener).serve,
            serve,
        )
        yield web
        tasks.cancel_scope.cancel()
    await listener.aclose()


def resolver_of(
    names: dict[str, list[str]], asked: list[str] | None = None
) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that knows these names only."""

    async def resolve(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        if host not in names:
            raise OSError("unknown")
        return names[host]

    return resolve
