"""How a body gets to the disk: in few blocks that are used again, past the HTTP parser."""

from __future__ import annotations

import hashlib
import random
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import wait_all_tasks_blocked
from anyio.streams.tls import TLSListener

from aioembed.resources import FetchLimits, Resource
from aioembed.resources.connections import Connection, FillingBackend
from aioembed.resources.partial import Partial
from aioembed.resources.pipeline import pump

pytestmark = pytest.mark.anyio

MIB = 1 << 20


class Endless:
    """A body that always has bytes, up to `size`."""

    def __init__(self, size: int) -> None:
        self.read = 0
        self.size = size
        self.memory: set[int] = set()

    async def read_into(self, view: memoryview) -> int:
        await anyio.lowlevel.checkpoint()
        count = min(len(view), self.size - self.read)
        self.read += count
        self.memory.add(id(view.obj))
        return count

    async def end(self) -> None:
        pass


async def test_a_slow_disk_holds_the_reader_back_and_blocks_are_used_again() -> None:
    body, disk, written = Endless(40 * MIB), threading.Event(), []

    def write(blocks: Sequence[memoryview]) -> None:
        disk.wait()
        written.append(sum(map(len, blocks)))

    async with anyio.create_task_group() as group:
        group.start_soon(pump, body, write, lambda count: None, FetchLimits())
        await wait_all_tasks_blocked()
        read_meanwhile = body.read
        disk.set()
    assert read_meanwhile <= 4 * MIB
    assert len(body.memory) <= 4
    assert sum(written) == 40 * MIB


async def test_a_writer_that_fails_stops_the_reader() -> None:
    body = Endless(1 << 40)

    def write(blocks: Sequence[memoryview]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await pump(body, write, lambda count: None, FetchLimits())
    assert body.read <= 16 * MIB


def test_a_part_is_done_with_a_block_when_append_returns(tmp_path: Path) -> None:
    part = Partial.open(tmp_path)
    block = bytearray(random.Random(1).randbytes(4 * MIB))
    content = bytes(block)
    part.append([memoryview(block)[:MIB], memoryview(block)[MIB:]])
    block[:] = bytes(len(block))
    assert part.sha256 == hashlib.sha256(content).hexdigest()
    part.close()
    assert (tmp_path / "data").read_bytes() == content


@pytest.mark.parametrize("own", [True, False], ids=["own client", "the caller's client"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_larger_than_all_blocks_arrive_whole(
    *, scripted: Any, serve_file: Any, make_fetcher: Any, own: bool, framing: str
) -> None:
    content = random.Random(2).randbytes(9 * MIB + 17)
    server = scripted(serve_file(body=content, framing=framing))
    async with server, httpx.AsyncClient() as client:
        fetcher = make_fetcher(http_client=None if own else client)
        [file] = await fetcher.fetch([server.resource()])
    assert file.path.read_bytes() == content


async def test_a_chunk_larger_than_a_block_is_taken_apart(make_fetcher: Any) -> None:
    content = random.Random(3).randbytes(5 * MIB)

    async def body() -> AsyncIterator[bytes]:
        yield content

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        fetcher = make_fetcher(http_client=client)
        [file] = await fetcher.fetch([Resource("http://127.0.0.1/model.pte")])
    assert file.path.read_bytes() == content


async def test_a_read_that_is_cancelled_loses_nothing() -> None:
    sent = bytes(range(256))
    view = memoryview(bytearray(len(sent)))

    async def greet(peer: anyio.abc.SocketStream) -> None:
        async with peer:
            await peer.send(sent)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, greet)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        stream = await FillingBackend().connect_tcp("127.0.0.1", port)
        assert isinstance(stream, Connection)
        assert await stream.read_into(view[:1]) == 1  # the rest came with it
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.read_into(view[1:])
        assert scope.cancelled_caught
        assert await stream.read_into(view[1:]) == len(sent) - 1
        assert bytes(view) == sent
        await stream.aclose()
        group.cancel_scope.cancel()


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
async def test_no_descriptor_stays_open(scripted: Any, serve_file: Any, make_fetcher: Any) -> None:
    async with scripted(serve_file(cut_after=1000), serve_file()) as server:
        await make_fetcher().fetch([server.resource()])  # what is made once for the process
        before = _open_descriptors()
        await make_fetcher().fetch([Resource(f"{server.origin}/other.pte")])
        assert _open_descriptors() <= before


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context whose certificate the fetcher's own client trusts."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([program, *request.split(), *names], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


async def test_https_goes_past_the_parser_too(
    certificate: ssl.SSLContext, make_fetcher: Any
) -> None:
    content = random.Random(4).randbytes(3 * MIB)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    async def serve(peer: anyio.abc.ByteStream) -> None:
        async with peer:
            await peer.receive()
            await peer.send(head + content)

    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = plain.extra(anyio.abc.SocketAttribute.local_port)
    listener = TLSListener(plain, certificate, standard_compatible=False)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(partial(listener.serve, serve))
        [file] = await make_fetcher().fetch([Resource(f"https://localhost:{port}/model.pte")])
        group.cancel_scope.cancel()
    assert file.path.read_bytes() == content
