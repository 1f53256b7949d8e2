"""Fetching one image over http or https, under a policy."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import httpx

from ..errors import ImageFetchFailed
from .body import bounded_body
from .policy import SourcePolicy
from .rules import check_url, parse_url, refused, shown
from .transport import PolicyTransport, Resolver, resolve

__all__ = ["fetch"]

_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "aioembed"}


async def fetch(
    url: str,
    policy: SourcePolicy,
    *,
    http_client: httpx.AsyncClient | None = None,
    resolver: Resolver = resolve,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """Fetch a URL's bytes.

    Args:
        url: Of scheme http or https.
        policy: Rules that hold for the URL and for every redirect's target, and the limits.
        http_client: Asked only where the policy allows private addresses, since the addresses a
            client connects to, its proxies' among them, are its own affair. Otherwise, and by
            default, a `PolicyTransport` makes the connections: no proxies, no environment
            variables, no stored credentials.
        resolver: Name resolution of the `PolicyTransport`.
        transport: What makes the `PolicyTransport`'s connections.

    Raises:
        SourceRefused: A rule refuses the URL or a redirect.
        ImageTooLarge: More bytes than the policy's `max_bytes`.
        ImageFetchFailed: The server cannot be reached, answers with an error, or takes too long.
    """
    request_url = parse_url(url)
    try:
        with anyio.fail_after(policy.timeout):
            if http_client is not None and policy.private_addresses:
                return await _follow(http_client, request_url, policy)
            pinned = PolicyTransport(policy, resolver=resolver, transport=transport)
            async with httpx.AsyncClient(transport=pinned, trust_env=False) as client:
                return await _follow(client, request_url, policy)
    except TimeoutError as exc:
        raise ImageFetchFailed(
            f"{shown(request_url)}: fetching took longer than {policy.timeout:g} s, the source "
            "policy's timeout: allow more with SourcePolicy.allow(timeout=...)"
        ) from exc
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as exc:
        # UnicodeError: a host that IDNA refuses, in a redirect or on the way to a resolver.
        reason = str(exc) or type(exc).__name__
        raise ImageFetchFailed(f"{shown(request_url)}: {reason}") from exc


async def _follow(client: httpx.AsyncClient, url: httpx.URL, policy: SourcePolicy) -> bytes:
    request = client.build_request("GET", url, headers=_HEADERS, timeout=policy.timeout)
    for hop in range(policy.max_redirects + 1):
        check_url(request.url, policy)
        if hop:
            response = await client.send(request, stream=True, auth=None, follow_redirects=False)
        else:
            response = await client.send(request, stream=True, follow_redirects=False)
        try:
            if response.next_request is None:
                return await _read(response, policy)
            request = _next_hop(request, response.next_request)
        finally:
            await response.aclose()
    what = f"{shown(url)}: more than {policy.max_redirects} redirects"
    raise refused(what, "max_redirects", "allow with SourcePolicy.allow(max_redirects=...)")


def _next_hop(request: httpx.Request, redirect: httpx.Request) -> httpx.Request:
    """Return a redirect's request; one to another origin carries nothing of the caller's."""
    before, after = request.url, redirect.url
    if (before.scheme, before.host, before.port) == (after.scheme, after.host, after.port):
        return redirect
    return httpx.Request("GET", after, headers=_HEADERS, extensions=redirect.extensions)


async def _read(response: httpx.Response, policy: SourcePolicy) -> bytes:
    if not response.is_success:
        raise ImageFetchFailed(
            f"{shown(response.request.url)}: the server answered {response.status_code} "
            f"{response.reason_phrase}"
        )
    body = bounded_body(response.aiter_raw(), response.headers, policy.max_bytes)
    async with aclosing(body):
        return b"".join([piece async for piece in body])
