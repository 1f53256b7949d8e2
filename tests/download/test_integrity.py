"""Wrong bytes never reach the cache; sizes and progress are right whatever the framing."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from aioembed.download import Progress, Resource
from aioembed.errors import IntegrityError
from aioembed.testing import HubServer
from aioembed.testing._loopback import LoopbackServer, Reply, Request

pytestmark = pytest.mark.anyio


def _flip(data: bytes, position: int = 150_000) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


async def test_a_flipped_byte_is_an_integrity_error_and_leaves_nothing(
    scripted: Any, make_fetcher: Any, content: bytes, sha256: str, leftovers: Any
) -> None:
    async with scripted(Reply(body=_flip(content))) as server:
        with pytest.raises(IntegrityError, match=sha256) as caught:
            await make_fetcher().fetch([server.resource(sha256=sha256)])
        assert len(server.requests) == 1
    assert caught.value.code == 180
    assert leftovers() == ["partial/data"]


async def test_damage_in_a_resumed_file_is_repaired_from_scratch_once(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, sha256: str
) -> None:
    damaged = serve_file(body=_flip(content, 5), cut_after=120_000)
    async with scripted(damaged, serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource(sha256=sha256)])
    assert server.ranges == [None, "bytes=120000-", None]
    assert file.path.read_bytes() == content


@pytest.mark.parametrize("body_length", [299_999, 300_001], ids=["short", "long"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_of_the_wrong_size_is_an_integrity_error(
    *,
    scripted: Any,
    make_fetcher: Any,
    content: bytes,
    leftovers: Any,
    body_length: int,
    framing: Any,
) -> None:
    body = (content + b"!")[:body_length]
    async with scripted(Reply(body=body, framing=framing)) as server:
        with pytest.raises(IntegrityError, match="300000"):
            await make_fetcher().fetch([server.resource(size=300_000)])
    assert leftovers() == ["partial/data"]


async def test_identity_is_asked_for(scripted: Any, serve_file: Any, make_fetcher: Any) -> None:
    async with scripted(serve_file()) as server:
        await make_fetcher().fetch([server.resource()])
        assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_a_body_compressed_all_the_same_is_decoded_and_sized_right(
    scripted: Any, make_fetcher: Any, content: bytes, sha256: str
) -> None:
    seen: list[Progress] = []
    packed = Reply(body=gzip.compress(content), headers={"Content-Encoding": "gzip"})
    async with scripted(packed) as server:
        [file] = await make_fetcher().fetch(
            [server.resource(sha256=sha256)], on_progress=seen.append
        )
    assert file.size == len(content)
    assert file.path.read_bytes() == content
    assert {progress.total for progress in seen} == {None, len(content)}
    assert seen[-1].received == len(content)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_without_a_length_progress_stays_0_until_done_and_the_hash_is_checked(
    scripted: Any, make_fetcher: Any, content: bytes, sha256: str, framing: Any
) -> None:
    seen: list[Progress] = []
    slow = Reply(body=content, framing=framing, bytes_per_second=2e6)
    async with scripted(slow, Reply(body=_flip(content), framing=framing)) as server:
        await make_fetcher().fetch([server.resource(sha256=sha256)], on_progress=seen.append)
        with pytest.raises(IntegrityError):
            await make_fetcher().fetch([server.resource(sha256="0" * 64)])
    assert {(progress.fraction, progress.total) for progress in seen[:-1]} == {(0.0, None)}
    assert (seen[-1].fraction, seen[-1].total) == (1.0, len(content))


async def test_a_body_that_ends_by_closing_too_early_is_resumed(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    cut = serve_file(framing="close", cut_after=100_000)
    async with scripted(cut, serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource(size=len(content))])
    assert server.ranges == [None, "bytes=100000-"]
    assert file.path.read_bytes() == content


async def test_the_hubs_linked_size_and_hash_win_over_the_redirects_own(
    make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with HubServer(bytes_per_second=3e6) as hub:
        url = hub.add("someone/model", "model.pte", content)
        seen: list[Progress] = []
        fetcher = make_fetcher(endpoint=hub.endpoint)
        [file] = await fetcher.fetch([Resource(url)], on_progress=seen.append)
        assert len(hub.requests) == len(hub.storage_requests) == 1
    assert {progress.total for progress in seen} == {len(content)}
    assert (file.sha256, file.trusted) == (sha256, True)
    assert len(file.commit or "") == 40


async def test_bytes_that_differ_from_the_linked_hash_are_refused(
    make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with _linked(_flip(content), sha256, len(content)) as server:
        with pytest.raises(IntegrityError, match="announced"):
            await make_fetcher().fetch([Resource(f"{server.origin}/model.pte")])


async def test_a_body_that_differs_from_the_linked_size_is_refused(
    make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with _linked(content[:-1], sha256, len(content)) as server:
        with pytest.raises(IntegrityError, match="300000"):
            await make_fetcher().fetch([Resource(f"{server.origin}/model.pte")])


async def test_a_hash_that_is_not_from_the_hub_is_checked_but_not_trusted(
    make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with _linked(content, sha256, len(content)) as server:
        [file] = await make_fetcher().fetch([Resource(f"{server.origin}/model.pte")])
    assert not file.trusted


def _linked(body: bytes, sha256: str, size: int) -> LoopbackServer:
    """A server that redirects with linked headers and sends `body`."""

    def handle(request: Request) -> Reply:
        if request.path == "/stored":
            return Reply(body=body, headers={"ETag": '"stored"'})
        headers = {
            "Location": "/stored",
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(size),
        }
        return Reply(302, body=b"see there", headers=headers)

    return LoopbackServer(handle)
