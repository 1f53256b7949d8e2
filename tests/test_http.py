"""What models and images share when they speak HTTP: URLs, redirects, names, proxies."""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import aioembed
from aioembed import ImageEmbeddings, _http
from aioembed.errors import InvalidConfig, InvalidModelSource
from aioembed.testing._loopback import LoopbackServer, Reply

pytestmark = pytest.mark.anyio

IMPOSSIBLE = [
    "http://127.0.0.1:99999/m.pte",
    "http://127.0.0.1:65536/m.pte",
    "http://127.0.0.1:0/m.pte",
    "http://127.0.0.1:-1/m.pte",
    "http://127.0.0.1:port/m.pte",
    "http://xn--n3h.invalid/m.pte",
    "http://xn--.example/m.pte",
    "http://☃.example/m.pte",
    "http://\udcff.example/m.pte",
    "http://[::1/m.pte",
    "http://[::1]]/m.pte",
    "http://[zz]/m.pte",
    "http://[1.2.3.4]/m.pte",
    "http://::1/m.pte",
    "http://1.2.3.999/m.pte",
    "http://a..b/m.pte",
    "http://.example/m.pte",
    "http://-a.example/m.pte",
    f"http://{'a' * 64}.example/m.pte",
    f"http://{'a.' * 130}example/m.pte",
    "http://a%2eb/m.pte",
    "http://a b/m.pte",
    "http://a/m\n.pte",
    "http://a/m\x00.pte",
    "http://a\\b/m.pte",
    "http:///m.pte",
    "http://",
    "https://?m.pte",
    f"http://a/{'m' * 70_000}.pte",
]


@pytest.mark.parametrize("url", IMPOSSIBLE, ids=lambda url: ascii(url)[:40])
async def test_a_model_url_that_cannot_be_is_a_typed_error(url: str, tmp_path: Any) -> None:
    with pytest.raises(InvalidModelSource):
        await ImageEmbeddings(url, cache_dir=tmp_path).load()


@pytest.mark.parametrize("url", IMPOSSIBLE, ids=lambda url: ascii(url)[:40])
def test_an_impossible_url_raises_one_error_whose_text_can_be_shown(url: str) -> None:
    with pytest.raises(_http.UnusableURL) as caught:
        _http.parse_url(url)
    assert caught.value.__cause__ is None
    assert str(caught.value).isprintable()
    assert _http.show_url(url).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@a:99999/m.pte",
        "http://user:hunter2@[::1/m.pte",
        "http://user:hunter2/@a/m.pte",
        "http://user:hun\nter2@a/m.pte",
        "http://a:hunter2/m.pte",
        "http://a b/m.pte?token=hunter2",
        "https://user:hunter2@a/m.pte?token=hunter2#hunter2",
    ],
)
def test_no_text_of_a_url_holds_its_password_or_query(url: str) -> None:
    shown = [_http.show_url(url)]
    try:
        _http.parse_url(url)
    except _http.UnusableURL as exc:
        shown.append(f"{exc} {exc.__cause__!r}")
    if ":hunter2/m" not in url:  # a port that is a word: the URL names no user
        assert not any("hun" in text or "ter2" in text for text in shown)
    else:
        assert "hunter2" not in shown[1]


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("HTTPS://Example.ORG/m.pte", b"example.org", None),
        ("http://example.org:/m.pte", b"example.org", None),
        ("http://example.org.:8080/m.pte", b"example.org.", 8080),
        ("http://[::1]:65535/m.pte", b"::1", 65535),
        ("http://127.0.0.1:1/m.pte", b"127.0.0.1", 1),
        ("http://bücher.example/m.pte", b"xn--bcher-kva.example", None),
        ("http://my_host/m.pte?a=b%2Fc", b"my_host", None),
        ("https://user:p%40ss@example.org/m@1.pte", b"example.org", None),
    ],
)
def test_urls_that_can_be_are_accepted(url: str, host: bytes, port: int | None) -> None:
    parsed = _http.parse_url(url)
    assert (parsed.raw_host, parsed.port) == (host, port)


async def test_a_model_url_in_capitals_is_a_url(tmp_path: Any) -> None:
    async with LoopbackServer(lambda _: Reply(404)) as server:
        url = server.origin.replace("http", "HTTP") + "/m.pte"
        with pytest.raises(aioembed.errors.ResourceNotFound):
            await ImageEmbeddings(url, cache_dir=tmp_path).load()
        assert server.requests[0].target == "/m.pte"


SECRET_HEADERS = {
    "Authorization": "Bearer secret",
    "PRIVATE-TOKEN": "secret",
    "X-Api-Key": "secret",
    "X-Amz-Security-Token": "secret",
    "X-Whatever": "secret",
    "Referer": "https://user:secret@intranet.example/",
    "From": "secret@example.org",
}


async def _follow(client: httpx.AsyncClient, url: str, limit: int = 5) -> httpx.Response:
    redirects = _http.Redirects(client, _http.parse_url(url), limit=limit)
    while True:
        response = await redirects.send({"Accept-Encoding": "identity"}, timeout=5.0)
        try:
            if not redirects.follow(response):
                await response.aread()
                return response
        finally:
            await response.aclose()


async def test_only_harmless_headers_cross_to_another_origin() -> None:
    async with LoopbackServer(lambda _: Reply(body=b"here")) as other:
        to_other = Reply(302, headers={"Location": f"{other.origin}/b?x=1"})
        steps = iter([Reply(307, headers={"Location": "/again"}), to_other])
        async with (
            LoopbackServer(lambda _: next(steps)) as first,
            httpx.AsyncClient(
                headers={**SECRET_HEADERS, "User-Agent": "mine", "Accept-Language": "de"},
                cookies={"session": "secret"},
                params={"key": "secret"},
                auth=("user", "secret"),
                follow_redirects=True,
            ) as client,
        ):
            response = await _follow(client, f"{first.origin}/a")
    assert response.content == b"here"
    assert first.requests[0].target == "/a?key=secret"
    for request in first.requests:
        assert request.headers["private-token"] == "secret"
        assert request.headers["authorization"].startswith("Basic ")
        assert request.headers["cookie"] == "session=secret"
    [crossed] = other.requests
    assert crossed.target == "/b?x=1"
    assert not any("secret" in value for value in crossed.headers.values())
    assert not {"authorization", "cookie"} & set(crossed.headers)
    assert crossed.headers["user-agent"] == "mine"
    assert crossed.headers["accept-language"] == "de"
    assert crossed.headers["accept-encoding"] == "identity"


async def test_credentials_of_a_url_stay_with_it_and_out_of_the_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    async with LoopbackServer(lambda _: Reply(body=b"here")) as other:
        there = Reply(302, headers={"Location": f"{other.origin}/b"})
        async with LoopbackServer(lambda _: there) as first, httpx.AsyncClient() as client:
            await _follow(client, first.origin.replace("//", "//user:hunter2@") + "/a")
    assert first.requests[0].headers["authorization"].startswith("Basic ")
    assert "authorization" not in other.requests[0].headers
    assert "hunter2" not in caplog.text


async def test_a_redirect_from_https_to_http_is_refused() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://a.example/m?token=secret"})

    asked: list[str] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(_http.RedirectRefused, match="from https to http") as caught:
            await _follow(client, "https://a.example/m?token=secret")
    assert len(asked) == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    ["", "ftp://a/", "file:///etc/passwd", "http://a:99999/", "http://[::1/", "http://a%2eb/"],
)
async def test_a_redirect_that_leads_nowhere_is_refused(location: str) -> None:
    reply = Reply(302, headers={"Location": location})
    async with LoopbackServer(lambda _: reply) as server, httpx.AsyncClient() as client:
        with pytest.raises(_http.RedirectRefused, match="cannot be fetched"):
            await _follow(client, f"{server.origin}/a")
        assert len(server.requests) == 1


async def test_redirects_are_bounded() -> None:
    reply = Reply(302, headers={"Location": "/a"})
    async with LoopbackServer(lambda _: reply) as server, httpx.AsyncClient() as client:
        with pytest.raises(_http.RedirectRefused, match="more than 3 redirects"):
            await _follow(client, f"{server.origin}/a", limit=3)
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    "value", [b"sec\nret", b"sec\rret", b"sec\x00ret", b"secret\x7f", b"secret ", b"\tsecret"]
)
async def test_a_header_that_http_cannot_carry_is_a_typed_error_without_its_value(
    value: bytes,
) -> None:
    headers = [(b"X-Api-Key", value)]
    async with LoopbackServer(lambda _: Reply()) as server:
        async with httpx.AsyncClient(headers=headers) as client:
            with pytest.raises(InvalidConfig, match=r"(?i)x-api-key") as caught:
                await _follow(client, f"{server.origin}/a")
        assert not server.requests
    chain = [caught.value, caught.value.__cause__]
    assert not any("sec" in repr(error) for error in chain)


async def test_credentials_that_http_cannot_carry_are_a_typed_error_without_their_value() -> None:
    def auth(request: httpx.Request) -> httpx.Request:
        request.headers = httpx.Headers([*request.headers.raw, (b"Authorization", b"sec\nret")])
        return request

    async with LoopbackServer(lambda _: Reply()) as server, httpx.AsyncClient(auth=auth) as client:
        with pytest.raises(InvalidConfig, match="auth") as caught:
            await _follow(client, f"{server.origin}/a")
    assert caught.value.__cause__ is None
    assert "sec" not in str(caught.value)


def test_the_user_agent_names_the_library_its_version_and_where_to_ask() -> None:
    version = importlib.metadata.version("aioembed")
    assert _http.USER_AGENT.startswith(f"aioembed/{version} (+https://")


class _Resolver:
    """A system resolver with names that nobody answers for, until `release`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *args: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return self._real(host, *args, **options)
        self.asked.append(host)
        if host.startswith("dead"):
            self.released.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "timed out")
        if host.startswith("none"):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        if host.startswith("odd"):
            raise UnicodeError("label too long")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80))]


@pytest.fixture
def system_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Resolver]:
    resolver = _Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(_http, "_lookups", _http._Lookups(threads=100))
    yield resolver
    resolver.released.set()


async def test_names_without_an_answer_do_not_delay_others_and_time_out(
    system_resolver: _Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "_LOOKUP_SECONDS", 0.5)
    given_up: list[int] = []

    async def ask_dead(number: int) -> None:
        with pytest.raises(TimeoutError):
            await _http.resolve(f"dead{number}.test", 80)
        given_up.append(number)

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(ask_dead, number)
        await anyio.lowlevel.checkpoint()
        assert await _http.resolve("alive.test", 80) == ["192.0.2.7"]
        assert not given_up
    assert len(given_up) == 40


async def test_a_name_that_is_wanted_often_takes_one_thread(system_resolver: _Resolver) -> None:
    async def ask() -> None:
        with pytest.raises(OSError, match=r"dead\.test"):
            await _http.resolve("dead.test", 80)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        system_resolver.released.set()
    assert system_resolver.asked == ["dead.test"]


async def test_names_beyond_the_threads_wait_and_are_answered(
    system_resolver: _Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "_lookups", _http._Lookups(threads=2))
    answers: list[Any] = []

    async def ask(host: str) -> None:
        try:
            answers.append(await _http.resolve(host, 80))
        except OSError:
            answers.append(None)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "dead1.test")
        group.start_soon(ask, "dead2.test")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask, "alive.test")
        await anyio.wait_all_tasks_blocked()
        assert not answers
        system_resolver.released.set()
    assert answers.count(["192.0.2.7"]) == 1
    assert answers.count(None) == 2


@pytest.mark.parametrize("host", ["none.test", "odd.test"])
async def test_a_name_without_address_is_an_oserror(system_resolver: _Resolver, host: str) -> None:
    with pytest.raises(OSError, match="has no address"):
        await _http.resolve(host, 80)


async def test_a_cancelled_lookup_releases_its_caller_immediately(
    system_resolver: _Resolver,
) -> None:
    began = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        await _http.resolve("dead.test", 80)
    assert scope.cancelled_caught
    assert time.monotonic() - began < 5  # the system's call goes on


def test_a_lookup_that_outlives_its_event_loop_logs_nothing(system_resolver: _Resolver) -> None:
    async def ask() -> None:
        with anyio.move_on_after(0.01):
            await _http.resolve("dead.test", 80)

    anyio.run(ask)
    system_resolver.released.set()
    for thread in threading.enumerate():
        if thread.name == "aioembed-dns":
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NO_PROXY", "[::1]"),
        ("NO_PROXY", "localhost, [::1]:8080"),
        ("NO_PROXY", "http://[::1"),
        ("no_proxy", "fe80::1/1280"),
        ("ALL_PROXY", "foo://user:secret@proxy.example:1"),
        ("ALL_PROXY", "socks://user:secret@proxy.example:1"),
        ("all_proxy", "http://user:secret@proxy.example:99999"),
        ("HTTPS_PROXY", "http://user:secret@[::1"),
        ("https_proxy", "http://user:secret@proxy.example:port"),
        ("HTTP_PROXY", "user:secret@a..b:80"),
    ],
)
def test_a_proxy_setting_that_cannot_be_read_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidConfig, match=variable) as caught:
        _http.new_client()
    assert "secret" not in f"{caught.value} {caught.value.__cause__!r}"


async def test_proxy_settings_that_can_be_read_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LoopbackServer(lambda _: Reply(body=b"proxied")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.origin)
        monkeypatch.setenv("NO_PROXY", "localhost,::1,10.0.0.0/8,.example.org")
        async with _http.new_client() as client:
            response = await _follow(client, "http://intranet.invalid/m")
    assert response.content == b"proxied"
    assert proxy.requests[0].headers["user-agent"] == _http.USER_AGENT


def test_a_program_that_fetches_nothing_does_not_import_httpx() -> None:
    """It would take 16 MB, and a third of the time of the import."""
    code = """
import sys
import anyio, numpy as np
from aioembed import ImageEmbeddings

async def main():
    async with ImageEmbeddings() as model:
        await model.load()
        await model.forward(np.zeros((8, 8, 3), np.uint8))

anyio.run(main)
sys.exit("httpx" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
