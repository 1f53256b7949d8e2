"""How a body gets to the disk: in blocks, written and hashed in threads."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio import wait_all_tasks_blocked

from aioembed.download import FetchLimits, Resource
from aioembed.download.partial import Partial
from aioembed.errors import DiskFull

pytestmark = pytest.mark.anyio

MIB = 1 << 20


class Body:
    """A body that counts what was read of it."""

    def __init__(self, chunks: int, chunk: bytes = bytes(MIB)) -> None:
        self.chunks = chunks
        self.chunk = chunk
        self.read = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        for _ in range(self.chunks):
            await anyio.lowlevel.checkpoint()
            self.read += len(self.chunk)
            yield self.chunk

    def client(self) -> httpx.AsyncClient:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=self())

        return httpx.AsyncClient(transport=httpx.MockTransport(answer))


RESOURCE = Resource("http://127.0.0.1/model.pte")


async def test_a_slow_disk_holds_the_reader_back(
    make_fetcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, disk, append = Body(40), threading.Event(), Partial.append

    def slow(self: Partial, chunks: Iterable[bytes]) -> None:
        disk.wait()
        append(self, chunks)

    monkeypatch.setattr(Partial, "append", slow)
    async with body.client() as client, anyio.create_task_group() as group:
        group.start_soon(make_fetcher(http_client=client).fetch, [RESOURCE])
        while not body.read:
            await wait_all_tasks_blocked()
        read_meanwhile = body.read
        disk.set()
    assert read_meanwhile <= 2 * MIB
    assert body.read == 40 * MIB


async def test_the_next_block_arrives_while_one_is_written(
    make_fetcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, arrived, in_time = Partial.append, threading.Event(), []

    class Watched(Body):
        async def __call__(self) -> AsyncIterator[bytes]:
            async for chunk in super().__call__():
                if self.read == 2 * MIB:
                    arrived.set()
                yield chunk

    def wait_for_the_next(self: Partial, chunks: Iterable[bytes]) -> None:
        in_time.append(arrived.wait(10))
        append(self, chunks)

    monkeypatch.setattr(Partial, "append", wait_for_the_next)
    async with Watched(3).client() as client:
        await make_fetcher(http_client=client).fetch([RESOURCE])
    assert all(in_time)


async def test_a_disk_that_takes_longer_than_the_stall_time_is_not_a_stall(
    make_fetcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Partial.append
    waiting = threading.Event()

    def slow(self: Partial, chunks: Iterable[bytes]) -> None:
        waiting.wait(0.3)
        append(self, chunks)

    monkeypatch.setattr(Partial, "append", slow)
    body = Body(3)
    async with body.client() as client:
        limits = FetchLimits(stall=0.2, retries=0)
        [file] = await make_fetcher(http_client=client, limits=limits).fetch([RESOURCE])
    assert file.size == 3 * MIB


async def test_a_writer_that_fails_stops_the_reader(
    make_fetcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Partial, chunks: Iterable[bytes]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Partial, "append", full)
    body = Body(1 << 20)
    async with body.client() as client:
        with pytest.raises(DiskFull, match="No space"):
            await make_fetcher(http_client=client).fetch([RESOURCE])
    assert body.read <= 2 * MIB


@pytest.mark.parametrize("own", [True, False], ids=["own client", "the caller's client"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_larger_than_a_block_arrive_complete(
    *, scripted: Any, serve_file: Any, make_fetcher: Any, own: bool, framing: str
) -> None:
    content = random.Random(2).randbytes(9 * MIB + 17)
    server = scripted(serve_file(body=content, framing=framing))
    async with server, httpx.AsyncClient() as client:
        fetcher = make_fetcher(http_client=None if own else client)
        [file] = await fetcher.fetch([server.resource()])
    assert file.path.read_bytes() == content


async def test_a_chunk_larger_than_a_block_arrives_complete(make_fetcher: Any) -> None:
    content = random.Random(3).randbytes(5 * MIB)
    async with Body(1, content).client() as client:
        [file] = await make_fetcher(http_client=client).fetch([RESOURCE])
    assert file.path.read_bytes() == content


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
async def test_no_descriptor_stays_open(scripted: Any, serve_file: Any, make_fetcher: Any) -> None:
    async with scripted(serve_file(cut_after=1000), serve_file()) as server:
        await make_fetcher().fetch([server.resource()])  # what is made once for the process
        before = _open_descriptors()
        await make_fetcher().fetch([Resource(f"{server.origin}/other.pte")])
        assert _open_descriptors() <= before
