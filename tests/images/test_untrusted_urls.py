"""An untrusted URL reaches no address that a policy does not allow."""

from __future__ import annotations

import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trustme

from aioembed.errors import (
    ImageFetchFailed,
    ImageTooLarge,
    InvalidConfig,
    InvalidUserInput,
    SourceRefused,
)
from aioembed.images import (
    ImageFetcher,
    PolicyTransport,
    SourcePolicy,
    fetch,
    is_public,
    load_image,
)
from aioembed.images.fetching import ImageClient
from aioembed.images.guard import parse_address

from .support import PUBLIC, ToLoopback, Web, resolver_of, serving

pytestmark = [
    pytest.mark.anyio,
    # httpcore leaves a generator open where a body is cut off; the connection is closed.
    pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning"),
]

UNTRUSTED = SourcePolicy.untrusted()
NAMES = {"good.example": [PUBLIC], "other.example": [PUBLIC]}

NOT_PUBLIC = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.0.192",
    "198.18.0.1",
    "::",
    "::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:93.184.216.34",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:5ef5:79fd::1",
    "2001:db8::1",
    "fe80::1%1",
]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as server:
        yield server


def fetching(
    web: Web, names: dict[str, list[str]] | None = None, policy: SourcePolicy = UNTRUSTED
) -> tuple[Callable[..., object], ToLoopback]:
    """Return a fetch whose every connection goes to the server on loopback, and those seen."""
    transport = ToLoopback(web.port)

    async def get(url: str, **options: object) -> bytes:
        return await fetch(
            url,
            policy,
            resolver=resolver_of(NAMES if names is None else names),
            backend=transport,
            **options,  # type: ignore[arg-type]
        )

    return get, transport


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_addresses_that_are_not_public_get_no_connection(address: str) -> None:
    async with serving() as web:
        get, transport = fetching(web, {"inside.example": [PUBLIC, address]})
        parsed = parse_address(address)
        assert parsed is not None
        assert not is_public(parsed)
        with pytest.raises(SourceRefused) as caught:
            await get("http://inside.example/cat.png")  # type: ignore[misc]
        assert caught.value.rule == "private_addresses"
        assert "private_addresses=True" in str(caught.value)
        assert address not in str(caught.value)
        if "%" not in address:
            host = f"[{address}]" if ":" in address else address
            with pytest.raises(SourceRefused):
                await get(f"http://{host}/cat.png")  # type: ignore[misc]
        assert web.connections == 0
        assert not transport.seen


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://localhost./",
        "http://[::1]/",
        "http://good.example\\@127.0.0.1/",
        "http://127.0.0.1\\.good.example/",
        "http://good.example@127.0.0.1/",
        "http://user:secret@good.example/",
        "http://127%2e0%2e0%2e1/",
        "http://１２７.0.0.1/",  # noqa: RUF001
        "http://good.example:0x50/",
        "http://good.example:99999/",
        "http:///good.example/",
        "http://",
        "http:good.example/",
        "http://good example/",
        "http://good.example/\r\nHost: 127.0.0.1",
        "http://[::1%25lo]/",
        "http://[127.0.0.1]/",
    ],
)
async def test_non_canonical_ip_addresses_are_refused(url: str) -> None:
    async with serving() as web:
        get, transport = fetching(web, {"localhost": ["127.0.0.1"], "good.example": [PUBLIC]})
        with pytest.raises(SourceRefused) as caught:
            await get(url)  # type: ignore[misc]
        assert "secret" not in str(caught.value)
        assert web.connections == 0
        assert not transport.seen


@pytest.mark.parametrize("source", ["file:///etc/passwd", "/etc/passwd", "etc/passwd"])
async def test_untrusted_input_may_use_web_and_data_uris_only(source: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        await load_image(source, policy=UNTRUSTED)
    assert caught.value.rule == "schemes"


@pytest.mark.parametrize("scheme", ["ftp", "gopher", "s3", "javascript", "jar"])
async def test_other_schemes_are_named(scheme: str) -> None:
    with pytest.raises(InvalidUserInput, match=scheme):
        await load_image(f"{scheme}://good.example/cat.png", policy=UNTRUSTED)


async def test_the_name_is_resolved_once_and_the_connection_pinned(web: Web) -> None:
    asked: list[str] = []
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    web.answer("/cat", b"pixels")
    transport = ToLoopback(web.port)
    url = "http://Good.Example/cat"
    assert await fetch(url, UNTRUSTED, resolver=rebinding, backend=transport) == b"pixels"
    assert asked == ["good.example"]
    assert transport.seen == [PUBLIC]
    assert "host: good.example" in web.requests[0].lower()


async def test_the_next_checked_address_is_tried(web: Web) -> None:
    web.answer("/cat", b"pixels")

    class FirstIsDown(ToLoopback):
        async def connect_tcp(
            self, host: str, port: int, *options: Any, **named: Any
        ) -> httpcore.AsyncNetworkStream:
            if host == "93.184.216.1":
                raise httpcore.ConnectError("down")
            return await super().connect_tcp(host, port, *options, **named)

    names = {"good.example": ["93.184.216.1", "2606:2800:220:1::1"]}
    transport = FirstIsDown(web.port)
    url = "http://good.example/cat"
    got = await fetch(url, UNTRUSTED, resolver=resolver_of(names), backend=transport)
    assert got == b"pixels"
    assert transport.seen == ["2606:2800:220:1::1"]


@pytest.mark.parametrize(
    ("location", "rule"),
    [
        ("http://127.0.0.1/x", "private_addresses"),
        ("http://inside.example/x", "private_addresses"),
        ("//169.254.169.254/latest", "private_addresses"),
        ("http://0x7f000001/", "malformed"),
        ("http://good.example:22/", "ports"),
        ("file:///etc/passwd", "schemes"),
        ("http://user:pw@good.example/", "credentials"),
    ],
)
async def test_every_redirect_is_checked_again(location: str, rule: str) -> None:
    async with serving() as web:
        web.redirect("/cat", location)
        get, transport = fetching(web, NAMES | {"inside.example": ["10.0.0.1"]})
        with pytest.raises(SourceRefused) as caught:
            await get("http://good.example/cat")  # type: ignore[misc]
        assert caught.value.rule == rule
        assert len(transport.seen) == 1


async def test_credentials_never_cross_origins(web: Web) -> None:
    web.redirect("/cat", f"http://localhost:{web.port}/dog")
    web.redirect("/dog", "/fox")
    web.answer("/fox", b"pixels")
    headers = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "Cookie": "id=secret"}
    async with httpx.AsyncClient(headers=headers, auth=("me", "secret")) as client:
        url = f"http://127.0.0.1:{web.port}/cat"
        got = await fetch(url, SourcePolicy.trusted(), http_client=client)
    assert got == b"pixels"
    first, *later = web.requests
    assert "secret" in first
    assert len(later) == 2
    assert not any("secret" in request or "Basic" in request for request in later)


async def test_a_callers_client_is_left_out_where_addresses_are_checked() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    async with serving() as web:
        web.answer("/cat", b"pixels")
        get, _ = fetching(web)
        async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as client:
            assert await get("http://good.example/cat", http_client=client) == b"pixels"  # type: ignore[misc]


async def test_the_byte_cap_holds_with_and_without_a_declared_length() -> None:
    async with serving() as web:
        web.answer("/declared", b"x" * 2000)
        web.answers["/open"] = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000
        web.answer("/fits", b"x" * 1000)
        get, _ = fetching(web, policy=UNTRUSTED.allow(max_bytes=1000))
        assert len(await get("http://good.example/fits")) == 1000  # type: ignore[misc]
        for path in ("declared", "open"):
            with pytest.raises(ImageTooLarge, match="max_bytes"):
                await get(f"http://good.example/{path}")  # type: ignore[misc]


async def test_the_byte_cap_counts_what_compression_expands_to() -> None:
    async with serving() as web:
        web.answer("/bomb", gzip.compress(b"\0" * 40_000_000), "Content-Encoding: gzip")
        web.answer("/fits", zlib.compress(b"pixels"), "Content-Encoding: deflate")
        web.answer(
            "/twice", gzip.compress(gzip.compress(b"pixels")), "Content-Encoding: gzip, gzip"
        )
        twice = gzip.compress(gzip.compress(b"\0" * 40_000_000))
        web.answer("/twice-a-bomb", twice, "Content-Encoding: gzip, gzip")
        raw = zlib.compressobj(wbits=-15)
        headless = raw.compress(b"pixels") + raw.flush()
        web.answer("/headless", headless, "Content-Encoding: deflate")
        web.answer("/brotli", b"pixels", "Content-Encoding: br")
        web.answer("/broken", b"no gzip at all", "Content-Encoding: gzip")
        get, _ = fetching(web, policy=UNTRUSTED.allow(max_bytes=100_000))
        for path in ("fits", "twice", "headless"):
            assert await get(f"http://good.example/{path}") == b"pixels"  # type: ignore[misc]
        for path in ("bomb", "twice-a-bomb"):
            with pytest.raises(ImageTooLarge):
                await get(f"http://good.example/{path}")  # type: ignore[misc]
        for path in ("brotli", "broken"):
            with pytest.raises(ImageFetchFailed):
                await get(f"http://good.example/{path}")  # type: ignore[misc]


async def test_the_total_time_is_capped(web: Web) -> None:
    get, _ = fetching(web, policy=UNTRUSTED.allow(timeout=0.2))
    with pytest.raises(ImageFetchFailed, match=r"0\.2 s.*timeout="):
        await get("http://good.example/never-answered")  # type: ignore[misc]


async def test_redirects_are_capped(web: Web) -> None:
    web.redirect("/cat", "/cat")
    get, _ = fetching(web)
    with pytest.raises(SourceRefused) as caught:
        await get("http://good.example/cat")  # type: ignore[misc]
    assert caught.value.rule == "max_redirects"
    assert len(web.requests) == UNTRUSTED.max_redirects + 1


async def test_only_listed_ports_and_hosts_are_asked(web: Web) -> None:
    get, transport = fetching(web)
    with pytest.raises(SourceRefused) as caught:
        await get("http://good.example:8080/cat")  # type: ignore[misc]
    assert caught.value.rule == "ports"
    policy = UNTRUSTED.allow(allow_hosts={"*.good.example"}, deny_hosts={"bad.good.example"})
    get, transport = fetching(web, {}, policy)
    for host, rule in (
        ("good.example", "allow_hosts"),
        ("evilgood.example", "allow_hosts"),
        ("bad.good.example.", "deny_hosts"),
    ):
        with pytest.raises(SourceRefused) as caught:
            await get(f"http://{host}/")  # type: ignore[misc]
        assert caught.value.rule == rule
    assert not transport.seen


@pytest.mark.parametrize("host", ["https://good.example/", "good.example:80", "a/b", "*", "", " "])
def test_what_is_not_a_host_is_refused_in_a_policy(host: str) -> None:
    for field in ("allow_hosts", "deny_hosts"):
        with pytest.raises(InvalidConfig, match="is not a host"):
            UNTRUSTED.allow(**{field: {host}})
    UNTRUSTED.allow(allow_hosts={"good.example", "*.good.example", "192.0.2.1", "2001:db8::1"})


async def test_a_server_that_answers_with_an_error_is_named(web: Web) -> None:
    web.answer("/gone?token=hidden", b"", status="404 Not Found")
    get, _ = fetching(web)
    with pytest.raises(ImageFetchFailed, match="404"):
        await get("http://good.example/gone?token=hidden")  # type: ignore[misc]
    with pytest.raises(ImageFetchFailed, match="resolve"):
        await get("http://nowhere.example/")  # type: ignore[misc]


async def test_the_transport_works_by_itself(web: Web) -> None:
    web.answer("/bomb", gzip.compress(b"\0" * 5_000_000), "Content-Encoding: gzip")
    web.answer("/cat", gzip.compress(b"pixels"), "Content-Encoding: gzip")
    web.redirect("/in", "http://127.0.0.1/")
    transport = PolicyTransport(
        UNTRUSTED.allow(max_bytes=1_000_000),
        resolver=resolver_of(NAMES),
        backend=ToLoopback(web.port),
    )
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
        assert (await client.get("http://good.example/cat")).content == b"pixels"
        with pytest.raises(ImageTooLarge):
            await client.get("http://good.example/bomb")
        with pytest.raises(SourceRefused):
            await client.get("http://good.example/in")


async def test_a_trusted_policy_reaches_loopback_through_the_same_transport(
    web: Web, png: bytes
) -> None:
    web.answer("/cat.png", png)
    url = f"http://127.0.0.1:{web.port}/cat.png"
    assert (await load_image(url, policy=SourcePolicy.trusted())).shape == (47, 61, 3)
    with pytest.raises(SourceRefused):
        await load_image(url, policy=UNTRUSTED.allow(ports=None))


async def test_certificates_that_cannot_be_read_are_an_error_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/there/is/none.pem")
    with pytest.raises(InvalidConfig, match="SSL_CERT_FILE"):
        await load_image("https://127.0.0.1/cat.png", policy=SourcePolicy.trusted())


async def test_cancelling_a_fetch_ends_it(web: Web) -> None:
    get, _ = fetching(web)
    with anyio.move_on_after(0.1) as scope:
        await get("http://good.example/never-answered")  # type: ignore[misc]
    assert scope.cancelled_caught


IMPOSSIBLE_PORTS = ["0", "65536", "99999", "-1", "0x50", "80a", "1e3", "9" * 400]
IMPOSSIBLE_HOSTS = [
    *("xn--n3h.invalid", "xn--", "xn--a", "xn--a.example", "xn--ü.example", "☃.invalid"),
    *("a" * 64 + ".example", ".".join(["a" * 60] * 6), "a..b", ".", "..", "*", "0x", "1.2.3.4.5"),
    *("\ud800.example", "\u200d.example", "[::1", "[]", "[v1.a]", "[1:2:3]", "999.1.1.1"),
]


@pytest.mark.parametrize("policy", [SourcePolicy.trusted(), UNTRUSTED], ids=["trusted", "not"])
@pytest.mark.parametrize("own_client", [False, True])
@pytest.mark.parametrize("redirected", [False, True])
async def test_impossible_ports_and_hosts_are_typed_errors(
    policy: SourcePolicy, own_client: bool, redirected: bool
) -> None:
    async with serving() as web, httpx.AsyncClient() as client:
        get, _ = fetching(web, policy=policy)
        for place in (*IMPOSSIBLE_HOSTS, *(f"good.example:{port}" for port in IMPOSSIBLE_PORTS)):
            url = f"http://{place}/cat.png"
            if redirected:
                web.answers["/to"] = (
                    b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
                    + url.encode("utf-8", "surrogatepass")
                    + b"\r\n\r\n"
                )
                own = own_client and policy.private_addresses
                url = f"http://127.0.0.1:{web.port}/to" if own else "http://good.example/to"
            with pytest.raises((SourceRefused, ImageFetchFailed)):
                await get(url, http_client=client if own_client else None)  # type: ignore[misc]


NO_ENCODINGS = [
    "UTF-8",
    "identity",
    "none",
    "binary",
    "aws-chunked",
    "",
    "image/png",
    "utf8, identity",
]


@pytest.mark.parametrize("encoding", NO_ENCODINGS)
async def test_unknown_content_encodings_are_ignored(encoding: str) -> None:
    async with serving() as web:
        web.answer("/cat", b"pixels", f"Content-Encoding: {encoding}")
        get, _ = fetching(web)
        assert await get("http://good.example/cat") == b"pixels"  # type: ignore[misc]
        small, _ = fetching(web, policy=UNTRUSTED.allow(max_bytes=3))
        with pytest.raises(ImageTooLarge):
            await small("http://good.example/cat")  # type: ignore[misc]


@pytest.mark.parametrize("private", [address for address in NOT_PUBLIC if "%" not in address])
async def test_redirects_to_every_private_address_are_refused(private: str) -> None:
    async with serving() as web:
        host = f"[{private}]" if ":" in private else private
        web.redirect("/cat", f"http://{host}/x")
        get, backend = fetching(web)
        with pytest.raises(SourceRefused) as caught:
            await get("http://good.example/cat")  # type: ignore[misc]
        assert caught.value.rule == "private_addresses"
        assert backend.seen == [PUBLIC]


async def test_the_next_address_is_tried_while_the_first_is_silent(web: Web) -> None:
    web.answer("/cat", b"pixels")
    silent = "2606:2800:220:1::9"

    class FirstIsSilent(ToLoopback):
        async def connect_tcp(
            self, host: str, port: int, *options: Any, **named: Any
        ) -> httpcore.AsyncNetworkStream:
            if host == silent:
                self.seen.append(host)
                await anyio.sleep_forever()
            return await super().connect_tcp(host, port, *options, **named)

    names = {"good.example": [silent, "2606:2800:220:1::8", PUBLIC]}
    backend = FirstIsSilent(web.port)
    with anyio.fail_after(10):
        got = await fetch(
            "http://good.example/cat", UNTRUSTED, resolver=resolver_of(names), backend=backend
        )
    assert got == b"pixels"
    assert backend.seen[:2] == [silent, PUBLIC]  # the other family is next


async def test_when_no_address_answers_that_is_the_error(web: Web) -> None:
    class AllDown(ToLoopback):
        async def connect_tcp(
            self, host: str, port: int, *options: Any, **named: Any
        ) -> httpcore.AsyncNetworkStream:
            self.seen.append(host)
            raise httpcore.ConnectError("down")

    names = {"good.example": [PUBLIC, "93.184.216.1", "2606:2800:220:1::1"]}
    backend = AllDown(web.port)
    with pytest.raises(ImageFetchFailed, match="down"):
        await fetch("http://good.example/", UNTRUSTED, resolver=resolver_of(names), backend=backend)
    assert sorted(backend.seen) == sorted(names["good.example"])


async def test_the_callers_client_keeps_its_headers_and_ours_name_the_library(web: Web) -> None:
    web.answer("/cat", b"pixels")
    url = f"http://127.0.0.1:{web.port}/cat"
    mine = {"User-Agent": "MyApp/1.0 (me@example.org)", "Accept": "image/png"}
    async with httpx.AsyncClient(headers=mine) as client:
        await fetch(url, SourcePolicy.trusted(), http_client=client)
    await fetch(url, SourcePolicy.trusted())
    theirs, ours = (request.lower() for request in web.requests)
    assert "user-agent: myapp/1.0 (me@example.org)" in theirs
    assert "accept: image/png" in theirs
    assert "user-agent: aioembed/" in ours
    assert "+https://" in ours


async def test_a_client_that_fetches_no_images_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with httpx.AsyncClient() as client:
        fetcher = ImageFetcher(UNTRUSTED, http_client=client)
        for _ in range(3):
            with pytest.raises(SourceRefused):
                await fetcher.obtain("http://127.0.0.1/")
    assert len([record for record in caplog.records if "http_client" in record.message]) == 1


async def test_cookies_are_not_kept(web: Web) -> None:
    web.answer("/cat", b"pixels", "Set-Cookie: id=1")
    client = ImageClient(UNTRUSTED, resolver=resolver_of(NAMES), backend=ToLoopback(web.port))
    for _ in range(2):
        await client.get("http://good.example/cat")
    await client.aclose()
    assert not any("cookie" in request.lower() for request in web.requests)
    assert web.connections == 1


async def test_a_kept_connection_that_the_server_has_closed_is_replaced(web: Web) -> None:
    web.answers["/cat"] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npixels"  # then it closes
    fetcher = ImageFetcher(SourcePolicy.trusted())
    for _ in range(5):
        assert await fetcher.obtain(f"http://127.0.0.1:{web.port}/cat") == b"pixels"
    await fetcher.aclose()


async def test_a_fetcher_can_be_used_again_after_it_was_closed(web: Web) -> None:
    web.answer("/cat", b"pixels")
    fetcher = ImageFetcher(SourcePolicy.trusted())
    for _ in range(2):
        assert await fetcher.obtain(f"http://127.0.0.1:{web.port}/cat") == b"pixels"
        await fetcher.aclose()
    assert web.connections == 2


async def test_a_hundred_images_of_one_https_host_share_its_connections(
    png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with serving(context) as web:
        web.answer("/cat", png)
        fetcher, at_once = ImageFetcher(SourcePolicy.trusted()), anyio.CapacityLimiter(8)

        async def one() -> None:
            async with at_once:
                assert await fetcher.obtain(f"https://localhost:{web.port}/cat") == png

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one)
        await fetcher.aclose()
        assert len(web.requests) == 100
        assert web.connections <= 8


async def test_proxies_of_the_environment_are_used_where_the_policy_says_so(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{web.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    web.answer("http://intranet.invalid/cat", b"pixels")
    policy = SourcePolicy.trusted()
    url = "http://intranet.invalid/cat"
    assert await fetch(url, policy.allow(environment_proxies=True)) == b"pixels"
    with pytest.raises(ImageFetchFailed):
        await fetch(url, policy)
