"""An httpx transport that keeps to a source policy: checked, pinned, bounded.

Use it by itself to fetch anything for strangers:

```python
transport = PolicyTransport(SourcePolicy.untrusted())
async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
    response = await client.get(url)
```
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

import anyio
import anyio.to_thread
import httpx

from .._http import read_certificates
from ..errors import ImageFetchFailed
from .addresses import is_public, parse_address
from .body import bounded_body
from .policy import SourcePolicy
from .rules import Endpoint, check_url, refused, shown

__all__ = ["PolicyTransport", "Resolver", "resolve"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Given a host name and a port, returns the addresses it has, as text."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver for a host's addresses.

    Raises:
        OSError: It has none.
    """
    answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


class PolicyTransport(httpx.AsyncBaseTransport):
    """Sends requests where a policy allows it, to addresses that were checked.

    Each request, a redirect's target included, goes through the policy's rules on scheme,
    credentials, host and port. The host is resolved once and every answer is checked; the
    connection goes to a checked address, while the Host header, the TLS server name and the
    certificate check keep the name. Bodies are counted after content decoding. Proxies and
    environment variables play no part, and no connection is kept for another request.

    `max_redirects` is the client's to count, since each hop is a request of its own here;
    `aioembed.images.fetch` does. `timeout` holds for each hop from its start to its last byte.

    Args:
        policy: With the rules.
        resolver: Name resolution; by default the system's.
        transport: What makes the connections; by default httpx's own, direct ones. It is closed
            with this transport.
    """

    def __init__(
        self,
        policy: SourcePolicy,
        *,
        resolver: Resolver = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._policy = policy
        self._resolve = resolver
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            SourceRefused: A rule refuses it; no connection was made.
            ImageFetchFailed: The name does not resolve, or the time is up.
            ImageTooLarge: While its body is read: more bytes than the policy's `max_bytes`.
        """
        deadline = anyio.current_time() + self._policy.timeout
        endpoint = check_url(request.url, self._policy)
        with _time_limit(deadline, self._policy):
            addresses = await self._checked_addresses(request.url, endpoint)
            response = await self._send(request, endpoint, addresses)
        return self._bounded(response, deadline)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _checked_addresses(self, url: httpx.URL, endpoint: Endpoint) -> Sequence[str]:
        literal = parse_address(endpoint.host)
        if literal is not None:
            answers: Sequence[str] = [str(literal)]
        else:
            try:
                answers = await self._resolve(endpoint.host, endpoint.port)
            except (OSError, UnicodeError) as exc:
                raise ImageFetchFailed(f"{shown(url)}: its host does not resolve") from exc
        if not answers:
            raise ImageFetchFailed(f"{shown(url)}: its host does not resolve")
        if not self._policy.private_addresses and not all(map(_is_public_text, answers)):
            # Which address it is, and what answers there, stays unsaid.
            what = f"{shown(url)}: its host is not on the public internet"
            hint = "allow with SourcePolicy.allow(private_addresses=True)"
            raise refused(what, "private_addresses", hint)
        return answers

    async def _send(
        self, request: httpx.Request, endpoint: Endpoint, addresses: Sequence[str]
    ) -> httpx.Response:
        if self._transport is None:
            # No connection is kept: the pool knows addresses only, and a connection whose
            # certificate was checked for one name must not serve another.
            self._transport = httpx.AsyncHTTPTransport(
                verify=await anyio.to_thread.run_sync(read_certificates),
                trust_env=False,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        *others, last = addresses
        for address in others:
            try:
                return await self._transport.handle_async_request(
                    _pinned(request, endpoint, address)
                )
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._transport.handle_async_request(_pinned(request, endpoint, last))

    def _bounded(self, response: httpx.Response, deadline: float) -> httpx.Response:
        headers = response.headers.copy()
        if "content-encoding" in headers:
            del headers["content-encoding"]
            headers.pop("content-length", None)
        return httpx.Response(
            response.status_code,
            headers=headers,
            stream=_BoundedStream(response, deadline, self._policy),
            extensions=response.extensions,
        )


class _BoundedStream(httpx.AsyncByteStream):
    """A response's body, decoded, counted and timed."""

    def __init__(self, response: httpx.Response, deadline: float, policy: SourcePolicy) -> None:
        self._response = response
        self._deadline = deadline
        self._policy = policy

    async def __aiter__(self) -> AsyncIterator[bytes]:
        timed = self._timed()
        body = bounded_body(timed, self._response.headers, self._policy.max_bytes)
        async with aclosing(timed), aclosing(body):
            async for piece in body:
                yield piece

    async def _timed(self) -> AsyncGenerator[bytes, None]:
        if not isinstance(self._response.stream, httpx.AsyncByteStream):
            raise ImageFetchFailed("the transport's response has no asynchronous body")
        chunks = aiter(self._response.stream)
        try:
            while True:
                with _time_limit(self._deadline, self._policy):
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
def _time_limit(deadline: float, policy: SourcePolicy) -> Iterator[None]:
    try:
        with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
            yield
    except TimeoutError as exc:
        raise ImageFetchFailed(
            f"fetching took longer than {policy.timeout:g} s, the source policy's timeout: allow "
            "more with SourcePolicy.allow(timeout=...)"
        ) from exc


def _is_public_text(answer: str) -> bool:
    address = parse_address(answer)
    return address is not None and is_public(address)


def _pinned(request: httpx.Request, endpoint: Endpoint, address: str) -> httpx.Request:
    headers = request.headers.copy()
    headers["host"] = request.url.netloc.decode("ascii")
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": endpoint.host},
    )
