"""What cannot be fetched is a typed error with the hook's code, and says what to do."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import httpx
import pytest

from aioembed.download import Cache, Fetcher, FetchLimits, Resource
from aioembed.download.hub import Hub
from aioembed.errors import (
    DownloadFailed,
    IntegrityError,
    InvalidConfig,
    InvalidModelSource,
)
from aioembed.testing._loopback import Reply


@pytest.mark.parametrize(
    "url",
    [
        "",
        "model.pte",
        "ftp://host/m",
        "https://",
        "https:///m.pte",
        "http://[::1/m",
        "h\0://x/y",
        "//h/m",
    ],
)
def test_a_malformed_url_is_an_invalid_model_source(url: str) -> None:
    with pytest.raises(InvalidModelSource) as caught:
        Resource(url)
    assert caught.value.code == 120


@pytest.mark.parametrize("fields", [{"sha256": "abc"}, {"sha256": "G" * 64}, {"size": -1}])
def test_a_malformed_hash_or_size_is_an_invalid_config(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Resource("https://host/m.pte", **fields)
    assert caught.value.code == 112


@pytest.mark.parametrize("fields", [{"stall": 0}, {"connect": -1}, {"retries": -1}, {"total": 0}])
def test_limits_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        FetchLimits(**fields)


@pytest.mark.parametrize("endpoint", ["mirror", "ftp://mirror", "http://[::1", "https://"])
def test_an_endpoint_that_is_not_a_url_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidConfig):
        Hub.configured(endpoint)


def test_urls_that_differ_get_different_keys_and_spellings_of_one_get_the_same() -> None:
    base = "https://host.example/a/model.pte"
    same = [
        "https://HOST.example:443/a/model.pte",
        base + "#part",
        "https://me:pw@host.example/a/model.pte",
    ]
    other = [
        base + "?v=2",
        "https://host.example/a_model.pte",
        "http://host.example/a/model.pte",
        "https://host.example/b/model.pte",
        "https://host.example:8443/a/model.pte",
    ]
    key = Resource(base).key
    assert {Resource(url).key for url in same} == {key}
    assert len({key, *(Resource(url).key for url in other)}) == len(other) + 1
    assert key.endswith("-model.pte")


@pytest.mark.parametrize(
    "tail", ["", "..", "%2e%2e", ".hidden", "a/../../../etc/passwd", "x" * 500, "ü%00\u202e.pte"]
)
def test_names_in_the_cache_are_plain_whatever_the_url(tail: str) -> None:
    resource = Resource(f"https://host.example/{tail}")
    assert set(resource.key) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
    )
    assert len(resource.key) < 120
    assert not resource.file_name.startswith(".")


def test_credentials_and_queries_stay_out_of_messages() -> None:
    resource = Resource("https://me:pw@host.example/m.pte?signature=secret")
    assert resource.shown == "https://host.example/m.pte"
    assert "pw" not in resource.canonical_url


@pytest.mark.anyio
class TestAnswers:
    @pytest.mark.parametrize(
        "page",
        [
            pytest.param({"headers": {"Content-Type": "text/html; charset=utf-8"}}, id="by type"),
            pytest.param({}, id="by its first bytes"),
        ],
    )
    async def test_a_web_page_in_place_of_a_model_is_refused(
        self, scripted: Any, make_fetcher: Any, page: dict[str, Any], leftovers: Any
    ) -> None:
        reply = Reply(body=b"\n <!DOCTYPE html><title>Log in</title>", **page)
        async with scripted(reply) as server:
            with pytest.raises(DownloadFailed, match="web page") as caught:
                await make_fetcher().fetch([server.resource()])
            assert len(server.requests) == 1
        assert caught.value.code == 180
        assert "model.pte" not in leftovers()

    async def test_a_size_that_differs_from_the_published_one_is_refused_before_the_body(
        self, scripted: Any, serve_file: Any, make_fetcher: Any, leftovers: Any
    ) -> None:
        async with scripted(serve_file(hang_after=0)) as server:
            with pytest.raises(IntegrityError, match="12 were published"):
                await make_fetcher().fetch([server.resource(size=12)])
        assert "model.pte" not in leftovers()

    async def test_an_empty_file_is_fetched_as_such(self, scripted: Any, make_fetcher: Any) -> None:
        async with scripted(Reply()) as server:
            [file] = await make_fetcher().fetch([server.resource()])
        assert file.size == 0

    async def test_a_host_without_address_is_named(self, make_fetcher: Any) -> None:
        with pytest.raises(DownloadFailed, match=r"nowhere\.invalid") as caught:
            await make_fetcher().fetch([Resource("https://nowhere.invalid/model.pte")])
        assert caught.value.code == 180

    async def test_a_refused_connection_is_retried_then_named(
        self, make_fetcher: Any, waits: Any
    ) -> None:
        with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1"):
            await make_fetcher().fetch([Resource("http://127.0.0.1:9/model.pte")])
        assert len(waits.slept) == 3

    async def test_plain_http_beyond_loopback_is_allowed_and_warned_about_once(
        self, cache: Cache, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = f"{uuid.uuid4().hex}.example"  # of which nothing was said in this process
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"model"))
        async with httpx.AsyncClient(transport=transport) as client:
            fetcher = Fetcher(cache, http_client=client)
            with caplog.at_level(logging.WARNING, "aioembed.download"):
                for name in "ab":
                    await fetcher.fetch([Resource(f"http://{host}/{name}.pte")])
        assert caplog.text.count("without encryption") == 1

    async def test_plain_http_on_loopback_is_not_warned_about(
        self,
        scripted: Any,
        serve_file: Any,
        make_fetcher: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async with scripted(serve_file()) as server:
            await make_fetcher().fetch([server.resource()])
        assert "encryption" not in caplog.text
