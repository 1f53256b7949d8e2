"""Fetching images over http and https under a source policy: checked, pinned, bounded, pooled.

Use the transport by itself to fetch anything for others:

```python
transport = PolicyTransport(SourcePolicy.untrusted())
async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
    response = await client.get(url)
```
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import zip_longest

import anyio
import httpcore
import httpx
from anyio import to_thread

from .._http import (
    USER_AGENT,
    RedirectRefused,
    Redirects,
    TooManyRedirects,
    new_client,
    read_certificates,
    resolve,
    show_url,
)
from ..errors import ImageFetchFailed, ImageTooLarge, SourceRefused
from .guard import check_addresses, check_url, parse_address, parse_url
from .policy import SourcePolicy

__all__ = ["ImageClient", "PolicyTransport", "Resolver", "fetch"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Given a host name and a port, returns the addresses it has, as text."""

_NEXT_ADDRESS_AFTER = 0.25
"""Seconds that an address may take to answer before the next one is tried too (RFC 8305)."""

_HEADERS = {"accept": "image/*,*/*;q=0.8", "user-agent": USER_AGENT}
_IDENTITY = {"accept-encoding": "identity"}
_CONNECTIONS = 100
_KEPT_SECONDS = 5.0
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
_MAX_PIECE = 65_536
_FROM_HTTPCORE = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)

_logger = logging.getLogger("aioembed")


async def fetch(
    url: str,
    policy: SourcePolicy,
    *,
    http_client: httpx.AsyncClient | None = None,
    resolver: Resolver = resolve,
    backend: httpcore.AsyncNetworkBackend | None = None,
) -> bytes:
    """Fetch one URL's bytes, over connections that are closed afterwards.

    Args:
        url: Of scheme http or https.
        policy: Rules that hold for the URL and for every redirect's target, and the limits.
        http_client: As for `ImageClient`.
        resolver: As for `ImageClient`.
        backend: As for `ImageClient`.

    Raises:
        SourceRefused: A rule refuses the URL or a redirect.
        ImageTooLarge: More bytes than the policy's `max_bytes`.
        ImageFetchFailed: The server cannot be reached, answers with an error, or takes too long.
        InvalidConfig: The environment's settings for connections cannot be used.
    """
    client = ImageClient(policy, http_client=http_client, resolver=resolver, backend=backend)
    try:
        return await client.get(url)
    finally:
        await client.aclose()


class ImageClient:
    """Fetches images under one policy; its connections are kept for the next image.

    Cookies are never kept. It belongs to the event loop of its first request, until it is closed.

    Args:
        policy: Rules that hold for every URL and for every redirect's target, and the limits.
        http_client: Used in place of an own client, with its headers, where the policy allows
            private addresses. Elsewhere it is left out, because what a client or its proxies
            connect to cannot be checked. It is not closed.
        resolver: Name resolution of the own client.
        backend: What makes the own client's connections; by default anyio.
    """

    def __init__(
        self,
        policy: SourcePolicy,
        *,
        http_client: httpx.AsyncClient | None = None,
        resolver: Resolver = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._policy = policy
        self._given = http_client if policy.private_addresses else None
        if http_client is not self._given:
            _logger.warning(
                "http_client does not fetch images here: the source policy allows public "
                "addresses only, and what a client connects to cannot be checked"
            )
        self._own: httpx.AsyncClient | None = None
        self._transport = partial(PolicyTransport, policy, resolver=resolver, backend=backend)

    async def get(self, url: str) -> bytes:
        """Fetch a URL's bytes.

        Raises:
            SourceRefused: A rule refuses the URL or a redirect.
            ImageTooLarge: More bytes than the policy's `max_bytes`.
            ImageFetchFailed: The server cannot be reached, answers with an error, or takes too
                long.
            InvalidConfig: The environment's settings for connections cannot be used.
        """
        parsed = parse_url(url)
        check_url(parsed, self._policy)
        try:
            with _time_limit(anyio.current_time() + self._policy.timeout, self._policy, parsed):
                return await self._follow(self._given or await self._client(), parsed)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as exc:
            # UnicodeError: of a caller's client, by a host that it cannot encode.
            reason = str(exc) or type(exc).__name__
            raise ImageFetchFailed(f"{show_url(parsed)}: {reason}") from exc

    async def aclose(self) -> None:
        """Close the connections; `get` opens them again."""
        client, self._own = self._own, None
        if client is not None:
            with anyio.CancelScope(shield=True):
                await client.aclose()

    async def _client(self) -> httpx.AsyncClient:
        if self._own is None:
            made = await self._make_client()
            if self._own is not None:  # another call was quicker
                await made.aclose()
            else:
                self._own = made
        return self._own

    async def _make_client(self) -> httpx.AsyncClient:
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        if not self._policy.environment_proxies:
            transport = self._transport()
            return httpx.AsyncClient(
                transport=transport, trust_env=False, headers=_HEADERS, cookies=cookies
            )
        limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_KEPT_SECONDS)
        make = partial(new_client, headers=_HEADERS, cookies=cookies, limits=limits)
        return await to_thread.run_sync(make)

    async def _follow(self, client: httpx.AsyncClient, url: httpx.URL) -> bytes:
        policy = self._policy
        redirects = Redirects(client, url, limit=policy.max_redirects)
        while True:
            response: httpx.Response | None = None
            try:
                response = await redirects.send(_IDENTITY, timeout=policy.timeout)
                if not redirects.follow(response):
                    return await self._read(response)
            except RedirectRefused as exc:
                location = "" if response is None else response.headers.get("location", "")
                raise _redirect_refused(exc, location) from None
            finally:
                if response is not None:
                    await response.aclose()
            check_url(redirects.url, policy)

    async def _read(self, response: httpx.Response) -> bytes:
        if not response.is_success:
            raise ImageFetchFailed(
                f"{show_url(response.request.url)}: the server answered {response.status_code} "
                f"{response.reason_phrase}"
            )
        max_bytes = self._policy.max_bytes
        if response.is_stream_consumed:  # made with its content, as by httpx.MockTransport
            if len(response.content) > max_bytes:
                raise _too_large(max_bytes)
            return response.content
        body = bounded_body(response.aiter_raw(), response.headers, max_bytes)
        async with aclosing(body):
            return b"".join([piece async for piece in body])


class PolicyTransport(httpx.AsyncBaseTransport):
    """Sends requests where a policy allows it, to addresses that were checked.

    Each request, a redirect's target included, goes through the policy's rules on scheme,
    credentials, host and port. For each connection the host is resolved once, every answer is
    checked, and a checked address is connected to (the next one too after 250 ms, RFC 8305), while
    the Host header, the TLS server name and the certificate check keep the name. Connections are
    kept for later requests to the same name. Bodies are counted after content decoding. Proxies
    and environment variables play no part, but for the trusted certificates.

    `max_redirects` is the client's to count, since each hop is a separate request here;
    `aioembed.images.fetch` does. `timeout` holds for each hop from its start to its last byte.

    Args:
        policy: With the rules.
        resolver: Name resolution; by default the system's.
        backend: What makes the connections, given addresses; by default anyio.
    """

    def __init__(
        self,
        policy: SourcePolicy,
        *,
        resolver: Resolver = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._policy = policy
        self._backend = _CheckedBackend(policy, resolver, backend or httpcore.AnyIOBackend())
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            SourceRefused: A rule refuses it; no connection was made.
            ImageFetchFailed: The name does not resolve, or the time is up.
            ImageTooLarge: While its body is read: more bytes than the policy's `max_bytes`.
        """
        deadline = anyio.current_time() + self._policy.timeout
        host, port = check_url(parse_url(str(request.url)), self._policy)
        sent = httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=request.url.raw_scheme, host=host, port=port, target=request.url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx_errors(), _time_limit(deadline, self._policy, request.url):
            pool = self._pool or await self._open()
            try:
                response = await pool.handle_async_request(sent)
            except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                # A kept connection may be closed by the server just as it is used again.
                if request.method not in ("GET", "HEAD"):
                    raise
                response = await pool.handle_async_request(sent)
        headers = httpx.Headers(response.headers)
        body = _Body(response, headers.copy(), deadline, self._policy, request.url)
        if "content-encoding" in headers:
            del headers["content-encoding"]
            headers.pop("content-length", None)
        return httpx.Response(
            response.status, headers=headers, stream=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _open(self) -> httpcore.AsyncConnectionPool:
        certificates = await to_thread.run_sync(read_certificates)
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=certificates,
                max_connections=_CONNECTIONS,
                keepalive_expiry=_KEPT_SECONDS,
                network_backend=self._backend,
            )
        return self._pool


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to a host by those of its addresses that a policy has checked."""

    def __init__(
        self, policy: SourcePolicy, resolver: Resolver, inner: httpcore.AsyncNetworkBackend
    ) -> None:
        self._policy = policy
        self._resolve = resolver
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        check_addresses(host, addresses, self._policy)

        async def connect(address: str) -> httpcore.AsyncNetworkStream:
            return await self._inner.connect_tcp(
                address, port, timeout, local_address, socket_options
            )

        return await _first_to_answer(_alternating(addresses), connect)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        literal = parse_address(host)
        if literal is not None:
            return [str(literal)]
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise ImageFetchFailed(f"{host!r} does not resolve to an address") from exc
        if not found:
            raise ImageFetchFailed(f"{host!r} does not resolve to an address")
        return found


def _alternating(addresses: Sequence[str]) -> list[str]:
    """Return addresses with IPv6 and IPv4 taking turns, the first staying first."""
    is_v6 = ":" in addresses[0]
    same = [address for address in addresses if (":" in address) == is_v6]
    other = [address for address in addresses if (":" in address) != is_v6]
    pairs = zip_longest(dict.fromkeys(same), dict.fromkeys(other))
    return [address for pair in pairs for address in pair if address is not None]


async def _first_to_answer(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]
) -> httpcore.AsyncNetworkStream:
    """Connect to the first address that answers (RFC 8305, section 5).

    Raises:
        httpcore.ConnectError: None of them answers.
        httpcore.ConnectTimeout: None of them answers in time.
    """
    connected: list[httpcore.AsyncNetworkStream] = []
    errors: list[Exception] = []

    async def attempt(address: str, ended: anyio.Event) -> None:
        try:
            stream = await connect(address)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
            errors.append(exc)
            ended.set()
            return
        connected.append(stream)
        attempts.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as attempts:
            for address in addresses:
                ended = anyio.Event()
                attempts.start_soon(attempt, address, ended)
                with anyio.move_on_after(_NEXT_ADDRESS_AFTER):
                    await ended.wait()
        if not connected:
            raise errors[0]
        return connected.pop(0)
    finally:
        for stream in connected:
            with anyio.CancelScope(shield=True):
                await stream.aclose()


class _Body(httpx.AsyncByteStream):
    """A response's body, decoded, counted and timed."""

    def __init__(
        self,
        response: httpcore.Response,
        headers: httpx.Headers,
        deadline: float,
        policy: SourcePolicy,
        url: httpx.URL,
    ) -> None:
        self._response = response
        self._headers = headers
        self._deadline = deadline
        self._policy = policy
        self._url = url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        timed = self._timed()
        body = bounded_body(timed, self._headers, self._policy.max_bytes)
        async with aclosing(timed), aclosing(body):
            async for piece in body:
                yield piece

    async def _timed(self) -> AsyncGenerator[bytes, None]:
        chunks = self._response.aiter_stream()
        try:
            while True:
                with _as_httpx_errors(), _time_limit(self._deadline, self._policy, self._url):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except _FROM_HTTPCORE as exc:  # httpx has the same names
        kind = getattr(httpx, type(exc).__name__, httpx.TransportError)
        raise kind(str(exc) or type(exc).__name__) from exc


@contextmanager
def _time_limit(deadline: float, policy: SourcePolicy, url: httpx.URL) -> Iterator[None]:
    try:
        with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
            yield
    except TimeoutError as exc:
        raise ImageFetchFailed(
            f"{show_url(url)}: fetching took longer than {policy.timeout:g} s, the source policy's "
            "timeout",
            rule="timeout",
            remedy="allow more with SourcePolicy.allow(timeout=...)",
        ) from exc


def _redirect_refused(error: RedirectRefused, location: str) -> SourceRefused:
    if isinstance(error, TooManyRedirects):
        remedy = "allow more with SourcePolicy.allow(max_redirects=...)"
        return SourceRefused(str(error), rule="max_redirects", remedy=remedy)
    scheme = re.match("([a-z][a-z0-9+.-]*):", location, re.IGNORECASE)
    is_other = scheme is not None and scheme[1].lower() not in ("http", "https")
    return SourceRefused(str(error), rule="schemes" if is_other else "malformed")


async def bounded_body(
    chunks: AsyncIterable[bytes], headers: httpx.Headers, max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield a body's bytes after content decoding, and never more than `max_bytes` of them.

    A body that expands a thousandfold is expanded 64 KiB at a time, so memory stays bounded.
    Values of Content-Encoding that name no encoding, as object stores send them, are ignored.

    Args:
        chunks: The body as it comes over the wire.
        headers: The response's.
        max_bytes: The limit, which holds for the declared length too.

    Raises:
        ImageTooLarge: There are more.
        ImageFetchFailed: The content encoding is one that cannot be decoded, or it is damaged.
    """
    named = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    unreadable = next((name for name in named if name in _UNREADABLE), None)
    if unreadable is not None:
        raise ImageFetchFailed(
            f"the server encoded the response as {unreadable!r}, although it was asked not to"
        )
    decoders = [_Inflate(_WINDOW_BITS[name]) for name in reversed(named) if name in _WINDOW_BITS]
    declared = headers.get("content-length", "")
    # A longer number is a larger one, and int() refuses very long ones.
    is_number = declared.isascii() and declared.isdecimal()
    is_longer = len(declared.lstrip("0")) > len(str(max_bytes))
    is_more = is_number and (is_longer or int(declared) > max_bytes)
    if is_more and not decoders:
        raise _too_large(max_bytes)
    seen = 0
    async for chunk in chunks:
        pieces: Iterable[bytes] = (chunk,)
        for decoder in decoders:
            pieces = decoder.expand(pieces, max_bytes)
        for piece in pieces:
            seen += len(piece)
            if seen > max_bytes:
                raise _too_large(max_bytes)
            yield piece


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the response has more than {max_bytes} bytes, the source policy's max_bytes",
        rule="max_bytes",
        remedy="allow more with SourcePolicy.allow(max_bytes=...)",
    )


class _Inflate:
    """One layer of gzip or deflate, expanded piece by piece and counted."""

    def __init__(self, window_bits: int) -> None:
        self._inflater = zlib.decompressobj(window_bits)
        self._may_be_raw = window_bits == zlib.MAX_WBITS  # many a server's deflate has no header
        self._seen = 0

    def expand(self, chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
        for chunk in chunks:
            rest = chunk
            while rest and not self._inflater.eof:
                piece = self._decompress(rest)
                rest = self._inflater.unconsumed_tail
                self._seen += len(piece)
                if self._seen > max_bytes:
                    raise _too_large(max_bytes)
                if piece:
                    yield piece

    def _decompress(self, data: bytes) -> bytes:
        try:
            piece = self._inflater.decompress(data, _MAX_PIECE)
        except zlib.error as exc:
            if not self._may_be_raw:
                raise ImageFetchFailed(f"the response's compression is damaged: {exc}") from exc
            self._may_be_raw = False
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._decompress(data)
        self._may_be_raw = False
        return piece
