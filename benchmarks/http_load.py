"""The load generator of `server.py` and `server_load.py`: raw bytes on sockets.

It shares the CPUs with the server, so requests are built once and answers are only counted. A
separate process times `/healthz`, and a server that does nothing for the machine's floor.

    python benchmarks/http_load.py bare
    python benchmarks/http_load.py probe http://127.0.0.1:8000 http://127.0.0.1:8001 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PERIOD = 0.02
"""Seconds between two questions after `/healthz`."""
_ALIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PROBE = b"GET /healthz HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


def request(
    body: bytes = b"",
    kind: str = "application/json",
    path: str = "/v1/embeddings",
    *,
    method: str = "POST",
) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: server\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def photograph() -> bytes:
    """Draw a JPEG of 640 x 480 and about 50 KB."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=55)
    return file.getvalue()


def upload(content: bytes, field: str = "input", path: str = "/v1/embeddings") -> bytes:
    """Return a request that uploads a JPEG in a form."""
    edge = "aioembed-benchmark"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    return request(body, f"multipart/form-data; boundary={edge}", path)


class Connection:
    """One connection that is kept, and made again after the server has closed it."""

    def __init__(self, url: str) -> None:
        self._address = address(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, raw: bytes) -> int:
        """Send a request and return the answer's status.

        Raises:
            ConnectionError: The server closed the connection without an answer.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        try:
            writer.write(raw)
            status, closes = await _read_answer(reader)
        except BaseException:
            await self.close()
            raise
        if closes:
            await self.close()
        return status

    async def close(self) -> None:
        """Close it, without waiting for the server."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", head)
        assert length, "an answer without a length"
        await reader.readexactly(int(length[1]))
    except asyncio.IncompleteReadError as exc:
        raise ConnectionResetError("closed without an answer") from exc
    return int(head[9:12]), b"\r\nconnection: close" in head


@contextmanager
def served(
    command: list[str], environment: Mapping[str, str] | None = None, *, grace: float = 60
) -> Iterator[Server]:
    """Start a server that says its address on standard error, and stop it by SIGTERM.

    What is left of it after `grace` seconds, its children too, is killed.
    """
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment or {}),
        start_new_session=True,
    )
    server = Server(process)
    try:
        server.url = _address_said(process)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.exit_code = process.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address_said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if match := re.search(r"http://[\w.]+:\d+", line):
            return match[0]
    raise RuntimeError(f"the server did not start: {''.join(said)[-300:]}")


class Server:
    """A server in its own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.exit_code: int | None = None


def health_probe(seconds: float, *urls: str) -> subprocess.Popen[str]:
    """Start a process that times `/healthz` of each server in turn; see `probed`."""
    command = [sys.executable, __file__, "probe", *urls, "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def probed(process: subprocess.Popen[str]) -> list[list[float]]:
    """Return the latencies in seconds, a list for each server."""
    said, _ = process.communicate()
    found: list[list[float]] = json.loads(said)
    return found


def _time_health(where: tuple[str, int]) -> float:
    began = time.perf_counter()
    with socket.create_connection(where, timeout=60) as talking:
        talking.sendall(_PROBE)
        answer = b"".join(iter(lambda: talking.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return time.perf_counter() - began


def _probe(urls: list[str], seconds: float) -> None:
    places = [address(url) for url in urls]
    found: list[list[float]] = [[] for _ in urls]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for place, latencies in zip(places, found, strict=True):
            latencies.append(_time_health(place))
            time.sleep(PERIOD)
    print(json.dumps(found))


async def _bare() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ALIVE)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["bare", "probe"])
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    if options.what == "bare":
        asyncio.run(_bare())
    else:
        _probe(options.urls, options.seconds)


if __name__ == "__main__":
    main()
