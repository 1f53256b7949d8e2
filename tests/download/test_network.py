"""Tokens, redirects, retries, stalls and offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from aioembed.download import Fetcher, FetchLimits, Resource
from aioembed.download.hub import Hub
from aioembed.errors import (
    DownloadFailed,
    DownloadInterrupted,
    InvalidConfig,
    OfflineError,
    ResourceNotFound,
    Unauthorized,
)
from aioembed.testing import HubServer
from aioembed.testing._loopback import LoopbackServer, Reply, Request

pytestmark = pytest.mark.anyio


async def test_the_token_reaches_the_hub_and_never_the_other_port(
    make_fetcher: Any, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with HubServer(token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        await make_fetcher().fetch([Resource(hub.add("a/b", "model.pte", content))])
        assert hub.requests[0].headers["authorization"] == "Bearer hf_secret"
        assert "authorization" not in hub.storage_requests[0].headers


async def test_the_token_is_not_sent_to_a_server_that_is_not_the_hub(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    async with scripted(serve_file()) as server:
        await make_fetcher(token="hf_secret").fetch([server.resource()])
        assert "authorization" not in server.requests[0].headers


async def test_a_clients_own_credentials_stay_with_the_first_origin(
    make_fetcher: Any, content: bytes
) -> None:
    async with LoopbackServer(lambda _: Reply(body=content)) as other:

        def redirect(request: Request) -> Reply:
            if request.path == "/model.pte":
                return Reply(302, headers={"Location": "/again"})
            return Reply(302, headers={"Location": f"{other.origin}/model.pte"})

        headers = {"Authorization": "Bearer mine", "X-Mine": "yes"}
        async with (
            LoopbackServer(redirect) as server,
            httpx.AsyncClient(headers=headers, cookies={"session": "mine"}) as client,
        ):
            url = f"{server.origin}/model.pte"
            await make_fetcher(http_client=client).fetch([Resource(url)])
            for request in server.requests:
                assert request.headers["authorization"] == "Bearer mine"
                assert request.headers["cookie"] == "session=mine"
        assert not {"authorization", "cookie"} & set(other.requests[0].headers)


@pytest.mark.parametrize(
    ("url", "sees_it"),
    [
        ("https://huggingface.co/a/b/resolve/main/m.pte", True),
        ("https://huggingface.co:443/a/b/resolve/main/m.pte", True),
        ("http://huggingface.co/a/b/resolve/main/m.pte", False),
        ("https://huggingface.co:8443/a/b/resolve/main/m.pte", False),
        ("https://cdn.huggingface.co/m.pte", False),
        ("https://huggingface.co.evil.example/m.pte", False),
    ],
)
async def test_only_the_hubs_own_origin_over_https_sees_the_token(url: str, sees_it: bool) -> None:
    hub = Hub.configured(token="hf_secret")
    assert bool(hub.credentials(httpx.URL(url))) is sees_it


async def test_a_mirror_over_plain_http_does_not_see_the_token() -> None:
    hub = Hub.configured("http://mirror.example", "hf_secret")
    assert hub.credentials(httpx.URL("http://mirror.example/a")) == {}


async def test_no_header_of_a_client_but_the_harmless_ones_reaches_another_origin(
    make_fetcher: Any, content: bytes
) -> None:
    async with LoopbackServer(lambda _: Reply(body=content)) as other:
        there = Reply(302, headers={"Location": f"{other.origin}/model.pte"})
        headers = {"PRIVATE-TOKEN": "mine", "X-Api-Key": "mine", "User-Agent": "app/1"}
        async with (
            LoopbackServer(lambda _: there) as server,
            httpx.AsyncClient(headers=headers, params={"key": "mine"}) as client,
        ):
            url = f"{server.origin}/model.pte"
            await make_fetcher(http_client=client).fetch([Resource(url)])
    assert server.requests[0].headers["private-token"] == "mine"
    assert other.requests[0].headers["user-agent"] == "app/1"
    assert not any("mine" in value for value in other.requests[0].headers.values())
    assert other.requests[0].target == "/model.pte"


@pytest.mark.parametrize(
    "token", ["hf_sécret", "hf_secret\nhf_other", "hf_ secret", "hf_\x00secret"]
)
async def test_a_token_that_no_header_takes_is_named_and_not_shown(
    make_fetcher: Any,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    caplog.set_level("DEBUG")
    async with HubServer() as hub:
        url = hub.add("a/b", "model.pte", content)
        with pytest.raises(InvalidConfig, match="HF_TOKEN") as caught:
            await make_fetcher(token=token, endpoint=hub.endpoint).fetch([Resource(url)])
        assert not hub.requests
    texts = [repr(error) for error in (caught.value, caught.value.__cause__)]
    assert not any(word in text for text in [*texts, caplog.text] for word in ("cret", "hf_"))


async def test_an_unexpected_failure_is_one_typed_error(
    scripted: Any, serve_file: Any, make_fetcher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_request(_request: httpx.Request) -> None:
        raise ZeroDivisionError

    async with (
        scripted(serve_file()) as server,
        httpx.AsyncClient(event_hooks={"request": [on_request]}) as client,
    ):
        with pytest.raises(DownloadFailed, match="ZeroDivisionError") as caught:
            await make_fetcher(http_client=client).fetch([server.resource()])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "not foreseen" in caplog.text


async def test_a_mirror_stands_in_for_the_hub_and_the_cache_keeps_the_hubs_address(
    content: bytes, make_fetcher: Any
) -> None:
    async with HubServer() as hub:
        hub.add("a/b", "model.pte", content)
        resource = Resource("https://huggingface.co/a/b/resolve/main/model.pte")
        [file] = await make_fetcher(endpoint=hub.endpoint).fetch([resource])
    assert file.url == resource.url
    assert await make_fetcher(offline=True).fetch([resource]) == [file]


async def test_a_relative_redirect_keeps_its_query(
    scripted: Any, make_fetcher: Any, content: bytes
) -> None:
    hop = Reply(307, headers={"Location": "../stored/model.pte?signature=a%2Fb&expires=1"})
    async with scripted(hop, Reply(body=content)) as server:
        await make_fetcher().fetch([server.resource()])
        assert server.requests[1].target == "/stored/model.pte?signature=a%2Fb&expires=1"


async def test_redirect_loops_are_bounded(scripted: Any, make_fetcher: Any) -> None:
    async with scripted(Reply(302, headers={"Location": "/model.pte"})) as server:
        with pytest.raises(DownloadFailed, match="redirects"):
            await make_fetcher().fetch([server.resource()])
        assert len(server.requests) == FetchLimits().redirects + 1


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/m", "file:///etc/passwd"])
async def test_a_redirect_to_a_url_that_cannot_be_fetched_fails(
    scripted: Any, make_fetcher: Any, location: str
) -> None:
    async with scripted(Reply(302, headers={"Location": location})) as server:
        with pytest.raises(DownloadFailed, match="redirects to"):
            await make_fetcher().fetch([server.resource()])


async def test_retry_after_is_obeyed_and_5xx_backs_off(
    scripted: Any, serve_file: Any, make_fetcher: Any, waits: Any
) -> None:
    busy = Reply(429, headers={"Retry-After": "7"})
    async with scripted(busy, Reply(503), Reply(500), serve_file()) as server:
        await make_fetcher().fetch([server.resource()])
    assert waits.slept == [7.0, 1.0, 2.0]


async def test_retry_after_may_be_a_date(
    scripted: Any, serve_file: Any, make_fetcher: Any, waits: Any
) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    async with scripted(Reply(503, headers={"Retry-After": moment}), serve_file()) as server:
        await make_fetcher().fetch([server.resource()])
    assert 30 < waits.slept[0] <= 60


async def test_retries_are_bounded(scripted: Any, make_fetcher: Any, waits: Any) -> None:
    async with scripted(Reply(502)) as server:
        with pytest.raises(DownloadFailed, match="502"):
            await make_fetcher().fetch([server.resource()])
        assert len(server.requests) == 4
    assert waits.slept == [0.5, 1.0, 2.0]


async def test_a_server_that_asks_for_too_long_a_wait_fails_immediately(
    scripted: Any, make_fetcher: Any, waits: Any
) -> None:
    async with scripted(Reply(429, headers={"Retry-After": "3600"})) as server:
        with pytest.raises(DownloadFailed, match="3600 s"):
            await make_fetcher().fetch([server.resource()])
    assert waits.slept == []


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, Unauthorized, "HF_TOKEN"),
        (403, Unauthorized, "HF_TOKEN"),
        (404, ResourceNotFound, "revision"),
        (410, ResourceNotFound, "410"),
        (400, DownloadFailed, "400"),
    ],
)
async def test_refusals_are_distinct_and_not_retried(
    scripted: Any, make_fetcher: Any, status: int, error: type[DownloadFailed], words: str
) -> None:
    async with scripted(Reply(status)) as server:
        with pytest.raises(error, match=words) as caught:
            await make_fetcher().fetch([server.resource()])
        assert len(server.requests) == 1
    assert type(caught.value) is error
    assert caught.value.code == 180


@pytest.mark.parametrize(
    "silence",
    [
        pytest.param({"hang_after": -1}, id="before the head"),
        pytest.param({"hang_after": 0}, id="before the body"),
        pytest.param({"hang_after": 5000}, id="in the body"),
        pytest.param({"bytes_per_second": 100}, id="trickling"),
    ],
)
async def test_a_silent_or_trickling_server_is_a_stall_not_a_hang(
    scripted: Any, serve_file: Any, make_fetcher: Any, silence: dict[str, Any]
) -> None:
    limits = FetchLimits(connect=0.2, stall=0.2, retries=1)
    async with scripted(serve_file(**silence)) as server:
        with pytest.raises(DownloadInterrupted, match="silent") as caught:
            await make_fetcher(limits=limits).fetch([server.resource()])
        assert len(server.requests) == 2
    assert caught.value.code == 118


async def test_bytes_before_a_stall_are_kept(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    limits = FetchLimits(stall=0.3)
    async with scripted(serve_file(hang_after=70_000), serve_file()) as server:
        [file] = await make_fetcher(limits=limits).fetch([server.resource()])
    assert server.ranges == [None, "bytes=70000-"]
    assert file.path.read_bytes() == content


async def test_a_fetch_that_takes_longer_than_the_total_limit_is_interrupted(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    limits = FetchLimits(total=0.2)
    async with scripted(serve_file(bytes_per_second=1e5)) as server:
        with pytest.raises(DownloadInterrupted, match=r"longer than 0\.2 s"):
            await make_fetcher(limits=limits).fetch([server.resource()])


async def test_a_cached_file_needs_no_network_even_where_the_server_hangs(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    async with scripted(serve_file(), Reply(hang_after=-1)) as server:
        first = await make_fetcher().fetch([server.resource()])
        assert await make_fetcher().fetch([server.resource()]) == first
        assert await make_fetcher().find_cached([server.resource()]) == first
        assert server.connections == 1


@pytest.mark.parametrize("how", ["argument", "variable"])
async def test_offline_and_not_cached_is_an_error_without_a_socket(
    scripted: Any, serve_file: Any, cache: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with scripted(serve_file()) as server:
        with pytest.raises(OfflineError, match="offline") as caught:
            await Fetcher(cache, offline=True if how == "argument" else None).fetch(
                [server.resource()]
            )
        assert server.connections == 0
    assert caught.value.code == 180
