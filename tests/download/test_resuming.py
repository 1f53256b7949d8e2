"""Interrupted downloads go on where they stopped, or start over where they must."""

from __future__ import annotations

from typing import Any

import pytest

from aioembed.download import FetchLimits
from aioembed.errors import DownloadFailed, DownloadInterrupted
from aioembed.testing._loopback import Reply

pytestmark = pytest.mark.anyio

CUT = 120_000
ONCE = FetchLimits(retries=0)


async def test_a_cut_body_is_resumed_with_range_and_if_range(
    *, scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, sha256: str, waits: Any
) -> None:
    async with scripted(serve_file(cut_after=CUT), serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource(sha256=sha256)])
        again = server.requests[1].headers
    assert file.path.read_bytes() == content
    assert file.sha256 == sha256
    assert (again["range"], again["if-range"]) == (f"bytes={CUT}-", '"v1"')
    assert server.sent == len(content)
    assert waits.slept == [0.5]


async def test_a_later_fetch_resumes_what_an_earlier_one_left(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, leftovers: Any
) -> None:
    async with scripted(*[serve_file(cut_after=CUT)] * 2, serve_file()) as server:
        for _ in range(2):
            with pytest.raises(DownloadInterrupted) as caught:
                await make_fetcher(limits=ONCE).fetch([server.resource()])
            assert caught.value.code == 118
            assert leftovers() == ["partial/data", "partial/journal.json"]
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert file.path.read_bytes() == content
    assert leftovers() == ["model.pte", "record.json"]


async def test_a_range_answered_with_200_starts_over_without_duplicated_bytes(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    whole = Reply(body=content, headers={"ETag": '"v1"'})
    async with scripted(serve_file(cut_after=CUT), whole) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, f"bytes={CUT}-"]
    assert file.path.read_bytes() == content


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes {CUT + 1}-299999/300000",
        f"bytes {CUT}-299999/300001",
        f"bytes {CUT}-299998/300000",
        f"bytes 0-{CUT}/300000",
        "bytes */300000",
        "nonsense",
    ],
)
async def test_a_206_with_a_wrong_start_or_total_is_never_appended(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, content_range: str
) -> None:
    headers = {"ETag": '"v1"', "Content-Range": content_range}
    lie = Reply(206, body=content[CUT:], headers=headers)
    async with scripted(serve_file(cut_after=CUT), lie, serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, f"bytes={CUT}-", None]
    assert file.path.read_bytes() == content


async def test_an_unsolicited_206_is_refused(
    scripted: Any, make_fetcher: Any, content: bytes
) -> None:
    lie = Reply(206, body=content, headers={"Content-Range": "bytes 0-299999/300000"})
    async with scripted(lie) as server:
        with pytest.raises(DownloadFailed, match="not asked for"):
            await make_fetcher().fetch([server.resource()])


async def test_a_part_that_is_complete_is_verified_and_no_body_is_requested(
    *, scripted: Any, serve_file: Any, make_fetcher: Any, cache: Any, content: bytes, sha256: str
) -> None:
    async with scripted(serve_file(cut_after=CUT)) as server:
        resource = server.resource(sha256=sha256)
        with pytest.raises(DownloadInterrupted):
            await make_fetcher(limits=ONCE).fetch([resource])
        with (cache.entry(resource).folder / "partial" / "data").open("ab") as part:
            part.write(content[CUT:])
        [file] = await make_fetcher().fetch([resource])
        assert len(server.requests) == 1
    assert file.path.read_bytes() == content


async def test_a_complete_part_with_wrong_bytes_is_fetched_again(
    *, scripted: Any, serve_file: Any, make_fetcher: Any, cache: Any, content: bytes, sha256: str
) -> None:
    async with scripted(serve_file(cut_after=CUT), serve_file()) as server:
        resource = server.resource(sha256=sha256)
        with pytest.raises(DownloadInterrupted):
            await make_fetcher(limits=ONCE).fetch([resource])
        with (cache.entry(resource).folder / "partial" / "data").open("ab") as part:
            part.write(bytes(len(content) - CUT))
        [file] = await make_fetcher().fetch([resource])
    assert server.ranges == [None, None]
    assert file.path.read_bytes() == content


async def test_a_416_that_confirms_the_length_completes_a_part_of_unknown_total(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    unknown = serve_file(framing="chunked", cut_after=len(content))
    async with scripted(unknown, serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, "bytes=300000-"]
    assert file.path.read_bytes() == content
    assert server.sent == len(content)


async def test_a_416_discards_the_part_and_starts_over_once(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, waits: Any
) -> None:
    unsatisfied = Reply(416, headers={"Content-Range": "bytes */5"})
    async with scripted(serve_file(cut_after=CUT), unsatisfied, serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        assert server.ranges == [None, f"bytes={CUT}-", None]
        assert file.path.read_bytes() == content
    assert waits.slept == [0.5, 0.0]


async def test_a_416_to_a_plain_request_fails(scripted: Any, make_fetcher: Any) -> None:
    async with scripted(Reply(416)) as server:
        with pytest.raises(DownloadFailed, match="broken"):
            await make_fetcher().fetch([server.resource()])
        assert len(server.requests) == 1


async def test_a_changed_etag_starts_over(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    other = content[::-1]
    async with scripted(serve_file(cut_after=CUT), serve_file('"v2"', other)) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert file.path.read_bytes() == other
    assert file.etag == '"v2"'


async def test_a_server_that_ignores_if_range_is_found_out_by_its_etag(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    other = content[::-1]
    headers = {"ETag": '"v2"', "Content-Range": f"bytes {CUT}-299999/300000"}
    ignorant = Reply(206, body=other[CUT:], headers=headers)
    steps = serve_file(cut_after=CUT), ignorant, serve_file('"v2"', other)
    async with scripted(*steps) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, f"bytes={CUT}-", None]
    assert file.path.read_bytes() == other


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
async def test_without_a_strong_validator_and_a_known_hash_nothing_is_resumed(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, etag: str | None
) -> None:
    async with scripted(serve_file(etag, cut_after=CUT), serve_file(etag)) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    assert server.ranges == [None, None]
    assert file.path.read_bytes() == content


async def test_a_known_hash_allows_resuming_without_a_validator(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with scripted(serve_file(None, cut_after=CUT), serve_file(None)) as server:
        [file] = await make_fetcher().fetch([server.resource(sha256=sha256)])
    assert server.ranges == [None, f"bytes={CUT}-"]
    assert file.path.read_bytes() == content


async def test_a_long_download_may_break_often_as_long_as_each_attempt_brings_a_mebibyte(
    scripted: Any, serve_file: Any, make_fetcher: Any, waits: Any
) -> None:
    body = bytes(5_500_000)
    cut = serve_file(body=body, cut_after=1_100_000)
    async with scripted(*[cut] * 4, serve_file(body=body)) as server:
        [file] = await make_fetcher(limits=FetchLimits(retries=1)).fetch([server.resource()])
    assert file.size == len(body)
    assert waits.slept == [0.5] * 4
