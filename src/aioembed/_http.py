"""What everything that speaks HTTP shares: URLs, redirects, name resolution, proxies, certificates.

Models and images are fetched by different rules, but these are the same for both:

- A URL that cannot lead anywhere is refused before anything is opened, and no message repeats
  the credentials in it.
- Redirects are followed hop by hop, and nothing secret leaves the first origin (`Redirects`).
- A host name that nobody answers for keeps only its own callers waiting (`resolve`).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import threading
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import idna

from .errors import InvalidConfig, shorten

__all__ = [
    "DEFAULT_PORTS",
    "USER_AGENT",
    "RedirectRefused",
    "Redirects",
    "TooManyRedirects",
    "UnusableURL",
    "is_loopback",
    "new_client",
    "origin",
    "parse_url",
    "read_certificates",
    "resolve",
    "show_url",
]

USER_AGENT = f"aioembed/{version('aioembed')} (+https://pypi.org/project/aioembed/)"

DEFAULT_PORTS = {"http": 80, "https": 443}
_LARGEST_PORT = 65_535
_LONGEST_NAME = 253
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Everything else that a client sends by default may be a secret: PRIVATE-TOKEN, X-Api-Key, ...
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$")

_LOOKUP_SECONDS = 10.0
_LOOKUP_THREADS = 100


class UnusableURL(ValueError):
    """A URL that cannot be fetched; the message is the reason, and repeats nothing of the URL."""


class RedirectRefused(Exception):
    """A redirect that is not followed; the message names the URLs without their credentials."""


class TooManyRedirects(RedirectRefused):
    """One more redirect than are followed."""


def parse_url(text: str) -> httpx.URL:
    """Parse an http or https URL, refusing one that cannot lead anywhere.

    Also refused is what parsers are known to read differently: backslashes, blanks, control
    characters, and escapes in the host.

    Raises:
        UnusableURL: It is malformed, of another scheme, or its host or port cannot exist.
    """
    if _NOT_IN_URLS.search(text):
        raise UnusableURL("it has a backslash, blank or control character: percent-encode it")
    authority = _AUTHORITY.match(text)
    if authority is None:
        raise UnusableURL("it must begin with https:// or http:// and a host")
    if "%" in authority[1].rpartition("@")[2]:
        raise UnusableURL("its host has a percent sign")
    try:
        url = httpx.URL(text)
        _ = url.host  # decodes the host's punycode
    except (httpx.InvalidURL, ValueError):
        # Their messages quote parts of the text, and a password may be among them.
        raise UnusableURL("its host or port is malformed: write https://host/path") from None
    host = url.raw_host.decode("ascii")
    if not _is_host(host):
        raise UnusableURL("its host cannot exist: write https://host/path")
    if url.port is not None and not 1 <= url.port <= _LARGEST_PORT:
        raise UnusableURL(f"its port must be from 1 to {_LARGEST_PORT}")
    return url


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    name = host.removesuffix(".")
    return len(name) <= _LONGEST_NAME and all(map(_NAME.fullmatch, name.split(".")))


def show_url(url: str | httpx.URL) -> str:
    """Return a URL for a message: without credentials, and without its query, which may sign it.

    What cannot be parsed is shown from its last `@` on, since a password may be before it.
    """
    if isinstance(url, str):
        try:
            url = parse_url(url)
        except UnusableURL:
            head = re.split("[?#]", str(url), maxsplit=1)[0]
            scheme, colon, rest = head.rpartition("://")
            return shorten(f"{scheme}{colon}{rest.rpartition('@')[2]}")
    shown = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    return shown if shown.isprintable() else shorten(shown)


def origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    """Return scheme, host and port: what a credential may not leave."""
    return url.scheme, url.raw_host, url.port or DEFAULT_PORTS.get(url.scheme)


def is_loopback(url: httpx.URL) -> bool:
    """Whether the URL's host is this machine."""
    host = url.raw_host.decode("ascii")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Redirects:
    """A GET request and its redirects, one hop at a time.

    The client's headers, cookies, parameters and credentials, and those in the URL, go to the
    first origin only; another one gets `accept`, `accept-language` and `user-agent`. A redirect
    from https to http is refused, and so are more than `limit` of them.

    Example:
        ```python
        redirects = Redirects(client, url, limit=10)
        while True:
            response = await redirects.send({"accept": "image/*"}, timeout=5.0)
            try:
                if not redirects.follow(response):
                    return await response.aread()
            finally:
                await response.aclose()
        ```

    Args:
        client: What sends; whether it follows redirects by itself does not matter.
        url: Where the chain begins, as `parse_url` returned it.
        limit: How many redirects are followed.

    Attributes:
        url: Where the next request goes, or the last one went.
    """

    def __init__(self, client: httpx.AsyncClient, url: httpx.URL, *, limit: int) -> None:
        self.url: httpx.URL = url
        self._client = client
        self._limit = limit
        self._hops = 0
        self._first = url

    async def send(
        self, headers: Mapping[str, str], *, timeout: httpx.Timeout | float
    ) -> httpx.Response:
        """Send this hop's request; the caller closes the response.

        Args:
            headers: Of this request, besides the client's; sent whatever the origin is.
            timeout: In seconds.

        Raises:
            InvalidConfig: A header has a value that HTTP cannot carry, such as a line break.
            RedirectRefused: The answer redirects to something malformed.
            httpx.RequestError: The request failed.
        """
        try:
            request = self._request(headers, httpx.Timeout(timeout))
            _check_headers(request.headers)
            return await self._client.send(
                request, stream=True, auth=self._auth(), follow_redirects=False
            )
        except idna.IDNAError:  # of the answer's Location, which the client looks into
            raise self._leads_nowhere() from None
        except (httpx.LocalProtocolError, UnicodeError):
            # Their messages and attributes hold the header's value.
            raise InvalidConfig(
                f"the request to {show_url(self.url)} cannot be sent: check the headers and the "
                "auth of the http_client"
            ) from None
        except httpx.RemoteProtocolError as exc:
            if "location header" not in str(exc):
                raise
            raise self._leads_nowhere() from None

    def follow(self, response: httpx.Response) -> bool:
        """Go on to where `response` redirects; False if it is not a redirect.

        Raises:
            RedirectRefused: It leads nowhere, or from https to http.
            TooManyRedirects: It is one more than are followed.
        """
        if response.status_code not in _REDIRECTS:
            return False
        if self._hops >= self._limit:
            raise TooManyRedirects(f"{show_url(self.url)}: more than {self._limit} redirects")
        self._hops += 1
        location = response.headers.get("location", "")
        try:
            target = parse_url(str(self.url.join(location))) if location else None
        except (httpx.InvalidURL, ValueError):
            target = None
        if target is None:
            raise self._leads_nowhere()
        if self.url.scheme == "https" and target.scheme != "https":
            raise RedirectRefused(
                f"{show_url(self.url)} redirects from https to http, where anyone on the way "
                "could read and change what is sent"
            )
        self.url = target
        return True

    def _leads_nowhere(self) -> RedirectRefused:
        return RedirectRefused(
            f"{show_url(self.url)} redirects to something that cannot be fetched"
        )

    @property
    def _is_first_origin(self) -> bool:
        return origin(self.url) == origin(self._first)

    def _auth(self) -> Any:  # noqa: ANN401  # httpx has no public name for "the client's own"
        for url in (self.url, self._first):
            if url.userinfo and origin(url) == origin(self.url):
                return httpx.BasicAuth(url.username, url.password)
        return httpx.USE_CLIENT_DEFAULT if self._is_first_origin else None

    def _request(self, headers: Mapping[str, str], timeout: httpx.Timeout) -> httpx.Request:
        client = self._client
        url = self.url.copy_with(userinfo=b"", fragment=None)  # httpx logs it
        if self._hops == 0:
            return client.build_request("GET", url, headers=dict(headers), timeout=timeout)
        # Not by the client, which would add its parameters again, to another host as well.
        is_first = self._is_first_origin
        kept = httpx.Headers(
            [item for item in client.headers.multi_items() if is_first or item[0] in _HARMLESS]
        )
        kept.update(dict(headers))
        return httpx.Request(
            "GET",
            url,
            headers=kept,
            cookies=client.cookies if is_first else None,
            extensions={"timeout": timeout.as_dict()},
        )


def _check_headers(headers: httpx.Headers) -> None:
    for name, value in headers.raw:
        if _UNSENDABLE.search(value):
            raise InvalidConfig(
                f"the header {name.decode('ascii', 'replace')} cannot be sent: its value has a "
                "line break, another control character, or a blank at its ends"
            )


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, as text, from the system's resolver.

    The system's call cannot be interrupted and may take over a minute for a name whose servers
    are silent. So it runs in its own thread, callers wait 10 seconds at most, and those who
    ask for the same name share one call.

    Args:
        host: A name or an address.
        port: Only bounds which protocols answer.

    Raises:
        OSError: It has no address.
        TimeoutError: Nobody answered in time.
    """
    waiter = _Waiter()
    with anyio.fail_after(_LOOKUP_SECONDS):
        lookup = _lookups.join((host, port), waiter)
        try:
            await waiter.done.wait()
        finally:
            _lookups.leave(lookup, waiter)
    if lookup.error is not None:
        raise OSError(f"{shorten(host)} has no address: {lookup.error}") from lookup.error
    return lookup.addresses


class _Waiter:
    """A caller that waits for a lookup, on the caller's event loop."""

    def __init__(self) -> None:
        self.done: anyio.Event = anyio.Event()
        self._token = anyio.lowlevel.current_token()

    def wake(self) -> None:
        """Wake it, from the lookup's thread."""
        try:
            anyio.from_thread.run_sync(self.done.set, token=self._token)
        except RuntimeError:
            return  # its event loop has ended, and it with it


class _Lookup:
    def __init__(self, key: tuple[str, int]) -> None:
        self.key = key
        self.waiters: set[_Waiter] = set()
        self.addresses: list[str] = []
        self.error: OSError | UnicodeError | None = None

    def run(self) -> None:
        host, port = self.key
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            self.error = exc
        else:
            self.addresses = [str(answer[4][0]) for answer in answers]


class _Lookups:
    """Lookups under way and those that wait for a thread, shared by all event loops."""

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], _Lookup] = {}
        self._queue: deque[_Lookup] = deque()
        self._free_threads = threads

    def join(self, key: tuple[str, int], waiter: _Waiter) -> _Lookup:
        with self._lock:
            lookup = self._known.get(key)
            if lookup is None:
                lookup = self._known[key] = _Lookup(key)
                self._queue.append(lookup)
                if self._free_threads:
                    self._free_threads -= 1
                    # A daemon, so that a call that hangs does not keep the program from ending.
                    threading.Thread(target=self._work, name="aioembed-dns", daemon=True).start()
            lookup.waiters.add(waiter)
            return lookup

    def leave(self, lookup: _Lookup, waiter: _Waiter) -> None:
        with self._lock:
            lookup.waiters.discard(waiter)

    def _work(self) -> None:
        while (lookup := self._next()) is not None:
            lookup.run()
            with self._lock:
                del self._known[lookup.key]
                waiters = tuple(lookup.waiters)
            for waiter in waiters:
                waiter.wake()

    def _next(self) -> _Lookup | None:
        with self._lock:
            while self._queue:
                lookup = self._queue.popleft()
                if lookup.waiters:
                    return lookup
                del self._known[lookup.key]
            self._free_threads += 1
            return None


_lookups = _Lookups(_LOOKUP_THREADS)


def new_client(**options: Any) -> httpx.AsyncClient:  # noqa: ANN401  # httpx's own options
    """Make a client with this library's User-Agent, and with the environment's settings.

    Blocks for about 50 ms when it reads the certificates.

    Args:
        **options: Of `httpx.AsyncClient`.

    Raises:
        InvalidConfig: The environment's proxy or certificate settings cannot be used; the
            variable is named.
    """
    options.setdefault("headers", {"User-Agent": USER_AGENT})
    if options.get("transport") is not None:
        return httpx.AsyncClient(**options)
    verify = options.setdefault("verify", read_certificates())
    if options.get("trust_env", True):
        _check_proxies(verify)
    try:
        return httpx.AsyncClient(**options)
    except (httpx.InvalidURL, ValueError) as exc:
        raise InvalidConfig(
            f"{_variable('no')} has an entry that cannot be read ({exc}): give host names and "
            "addresses, and an IPv6 address without brackets, port and prefix"
        ) from exc


def _check_proxies(verify: ssl.SSLContext | bool) -> None:
    """Refuse proxies that httpx cannot use; it does not say which variable is at fault."""
    settings = urllib.request.getproxies()
    for scheme in ("http", "https", "all"):
        value = settings.get(scheme)
        if not value:
            continue
        try:
            proxy = httpx.Proxy(value if "://" in value else f"http://{value}")
            parse_url(str(proxy.url.copy_with(scheme="http")))
            httpx.AsyncHTTPTransport(proxy=proxy, verify=verify)
        except ImportError as exc:
            raise InvalidConfig(
                f'{_variable(scheme)} names a SOCKS proxy, which needs: pip install "httpx[socks]"'
            ) from exc
        except (ValueError, httpx.InvalidURL):
            # Without the cause, whose message may hold the proxy's password.
            raise InvalidConfig(
                f"{_variable(scheme)} cannot be used as a proxy: give http://host:port"
            ) from None


def _variable(scheme: str) -> str:
    lower, upper = f"{scheme}_proxy", f"{scheme}_proxy".upper()
    return lower if lower in os.environ else upper


def read_certificates() -> ssl.SSLContext:
    """Return what is trusted, as the environment's settings say. Blocks.

    Raises:
        InvalidConfig: SSL_CERT_FILE or SSL_CERT_DIR cannot be used.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        return _trusting(file, folder)
    except (OSError, ValueError) as exc:
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        raise InvalidConfig(
            f"{' or '.join(names) or 'the certificates of the system'} cannot be used: {exc}"
        ) from exc


@cache
def _trusting(file: str | None, folder: str | None) -> ssl.SSLContext:  # noqa: ARG001
    """One context for each setting: making one takes 0.05 s."""
    return httpx.create_ssl_context()
