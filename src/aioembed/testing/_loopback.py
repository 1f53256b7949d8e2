"""A small HTTP/1.1 server on loopback that can also misbehave, for tests of clients."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, Self

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["LoopbackServer", "Reply", "Request", "file_reply"]

_SLICE_BYTES = 1 << 16
_TICK_SECONDS = 0.02
_LONGEST_HEAD = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        method: `GET` or `HEAD`.
        target: Path and query as sent.
        headers: By name in lower case.
    """

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    """What the server says, and how it misbehaves.

    Attributes:
        status: Of the answer.
        body: Its bytes.
        headers: Besides those of the framing.
        framing: `length` sends Content-Length, `chunked` chunks, `close` ends by closing.
        length: Content-Length to claim instead of the body's.
        bytes_per_second: Slows the body down.
        cut_after: Close the connection after so many bytes of the body.
        hang_after: Go silent after so many bytes of the body; -1 is silent before the head.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Literal["length", "chunked", "close"] = "length"
    length: int | None = None
    bytes_per_second: float | None = None
    cut_after: int | None = None
    hang_after: int | None = None


def file_reply(request: Request, content: bytes, *, etag: str | None = None) -> Reply:
    """Answer for a file as RFC 9110 says: complete, a range of it, or 416.

    Args:
        request: May carry Range and If-Range.
        content: The file.
        etag: Its validator, with quotes.
    """
    headers = {"Accept-Ranges": "bytes"} | ({"ETag": etag} if etag else {})
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", etag) != etag:
        return Reply(body=content, headers=headers)
    start, size = int(match[1]), len(content)
    end = min(int(match[2] or size - 1), size - 1)
    if start > end:
        return Reply(416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Reply(206, body=content[start : end + 1], headers=headers)


class LoopbackServer:
    """Serves what `handler` replies, on a free port of 127.0.0.1, inside `async with`.

    Works under asyncio and trio.

    Args:
        handler: Called with each request, in order of arrival.

    Attributes:
        requests: Everything that was asked so far.
        connections: Connections accepted so far.
        sent: Bytes of bodies sent so far.
        active: Connections open now.
    """

    def __init__(self, handler: Callable[[Request], Reply]) -> None:
        self.requests: list[Request] = []
        self.connections: int = 0
        self.sent: int = 0
        self.active: int = 0
        self._handler = handler
        self._changed = anyio.Event()
        self._port: int | None = None
        self._stack = AsyncExitStack()

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as `http://127.0.0.1:8123`.

        Raises:
            RuntimeError: The server was never started.
        """
        if self._port is None:
            raise RuntimeError("the server has no port outside of `async with`")
        return f"http://127.0.0.1:{self._port}"

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever something happened here."""
        while not condition():
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._serving())
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django's
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve_connection)
            yield  # never raises: what ends the body is not passed on to here
            group.cancel_scope.cancel()

    async def _serve_connection(self, stream: SocketStream) -> None:
        self.connections += 1
        self.active += 1
        self._notify()
        try:
            async with stream:
                reader = BufferedByteReceiveStream(stream)
                while await self._serve_request(reader, stream):
                    pass
        except (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.EndOfStream):
            return
        finally:
            self.active -= 1
            self._notify()

    async def _serve_request(self, reader: BufferedByteReceiveStream, stream: SocketStream) -> bool:
        head = await reader.receive_until(b"\r\n\r\n", _LONGEST_HEAD)
        request = _parse(head)
        self.requests.append(request)
        self._notify()
        reply = self._handler(request)
        if reply.hang_after == -1:
            await _await_close(reader)
            return False
        await stream.send(_head(reply))
        if request.method == "HEAD":
            return True
        whole = await self._send_body(reply, stream, reader)
        return whole and reply.framing != "close" and reply.length is None

    async def _send_body(
        self, reply: Reply, stream: SocketStream, reader: BufferedByteReceiveStream
    ) -> bool:
        ends = [end for end in (reply.cut_after, reply.hang_after) if end is not None]
        last = min([len(reply.body), *ends])
        rate = reply.bytes_per_second or math.inf
        step = int(max(1, min(_SLICE_BYTES, rate * _TICK_SECONDS)))
        body = memoryview(reply.body)[:last]
        began = anyio.current_time()
        for start in range(0, last, step):
            piece = bytes(body[start : start + step])
            chunked = reply.framing == "chunked"
            await stream.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self.sent += len(piece)
            self._notify()
            await anyio.sleep_until(began + (start + len(piece)) / rate)
        if last == reply.hang_after:
            await _await_close(reader)
        if ends:
            return False
        if reply.framing == "chunked":
            await stream.send(b"0\r\n\r\n")
        return True

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    fields = (line.partition(":") for line in lines if line)
    return Request(method, target, {name.lower(): value.strip() for name, _, value in fields})


def _head(reply: Reply) -> bytes:
    headers = dict(reply.headers)
    if reply.framing == "length":
        length = len(reply.body) if reply.length is None else reply.length
        headers.setdefault("Content-Length", str(length))
    elif reply.framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Connection"] = "close"
    phrase = HTTPStatus(reply.status).phrase
    lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _await_close(reader: BufferedByteReceiveStream) -> None:
    while True:
        await reader.receive()
