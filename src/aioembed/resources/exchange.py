"""One request with its redirects, and the errors a server or a network can answer with."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio
import httpcore
import httpx

from aioembed._http import RedirectRefused, Redirects, is_loopback, show_url
from aioembed.errors import (
    DownloadFailed,
    DownloadInterrupted,
    ResourceNotFound,
    Unauthorized,
)

from .hub import Hub, Linked
from .limits import FetchLimits

__all__ = [
    "Answer",
    "Retryable",
    "open_answer",
    "retry_after",
    "status_error",
    "translated_network_errors",
]

_logger = logging.getLogger("aioembed.resources")
_warned_hosts: set[str] = set()

_BROKEN = (httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError)
_FIRST_SERVER_ERROR = 500


class Retryable(Exception):
    """An attempt failed in a way that another may mend.

    Attributes:
        error: What the caller sees if no further attempt is made.
        after: Seconds the server asked to wait, 0 to retry at once, None for the usual backoff.
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(frozen=True)
class Answer:
    """The last answer of a chain of redirects, its body not read yet.

    Attributes:
        response: Status, headers and body.
        linked: What the hub said of the file on the way.
    """

    response: httpx.Response
    linked: Linked


@asynccontextmanager
async def open_answer(
    client: httpx.AsyncClient,
    url: httpx.URL,
    headers: Mapping[str, str],
    *,
    hub: Hub,
    limits: FetchLimits,
) -> AsyncIterator[Answer]:
    """Send a GET and follow redirects by hand, so that no credential leaves its origin.

    Raises:
        Retryable: The network failed.
        DownloadFailed: The chain of redirects leads nowhere.
    """
    redirects, linked = Redirects(client, url, limit=limits.redirects), Linked()
    timeout = httpx.Timeout(limits.stall, connect=limits.connect, pool=None)
    while True:
        url = redirects.url
        _warn_if_plain(url)
        sent = {**headers, **hub.credentials(url)}
        with translated_network_errors(url, limits):
            with anyio.fail_after(limits.connect + limits.stall):
                response = await redirects.send(sent, timeout=timeout)
        try:
            if linked.is_empty:
                linked = Linked.read(response.headers, trusted=hub.is_own(url))
            if not redirects.follow(response):
                yield Answer(response, linked)
                return
        except RedirectRefused as exc:
            raise DownloadFailed(str(exc)) from exc
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()


def _warn_if_plain(url: httpx.URL) -> None:
    if url.scheme == "http" and not is_loopback(url) and url.host not in _warned_hosts:
        _warned_hosts.add(url.host)
        _logger.warning(
            "%s is fetched without encryption: give its sha256, or use https", show_url(url)
        )


@contextmanager
def translated_network_errors(url: httpx.URL, limits: FetchLimits) -> Iterator[None]:
    """Turn what httpx and time-outs raise into `Retryable` or `DownloadFailed`."""
    try:
        yield
    except RedirectRefused as exc:
        raise DownloadFailed(str(exc)) from exc
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise _connect_error(exc, url) from exc
    except (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError) as exc:
        raise Retryable(
            DownloadInterrupted(
                f"{show_url(url)} went silent for {limits.stall:g} s; what arrived is kept, "
                "load again to go on"
            )
        ) from exc
    except httpx.UnsupportedProtocol as exc:
        raise DownloadFailed(f"{show_url(url)} cannot be asked for: {exc}") from exc
    except (*_BROKEN, httpx.StreamError, httpx.DecodingError) as exc:
        raise Retryable(
            DownloadInterrupted(
                f"the connection to {show_url(url)} broke ({exc}); what arrived is kept, "
                "load again to go on"
            )
        ) from exc


def _connect_error(exc: httpx.TransportError, url: httpx.URL) -> Exception:
    causes = list(_causes(exc))
    unresolved = [cause for cause in causes if isinstance(cause, socket.gaierror)]
    if unresolved:
        error = DownloadFailed(f"no address for {url.host}: check the URL and the network")
        return Retryable(error) if unresolved[0].errno == socket.EAI_AGAIN else error
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return DownloadFailed(f"the certificate of {url.host} is not valid: {exc}")
    return Retryable(DownloadFailed(f"no connection to {url.host}: {str(exc) or 'timed out'}"))


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def status_error(response: httpx.Response, shown: str, limits: FetchLimits) -> Exception | None:
    """Return the error that a final status means, None if a body follows."""
    status = response.status_code
    if status in {200, 206, 416}:
        return None
    said = f"{shown} answered {status} {response.reason_phrase}".rstrip()
    if status in {401, 403}:
        return Unauthorized(
            f"{said}: set HF_TOKEN to a token with access (a gated model's terms must be "
            "accepted on its page), or pass a client that carries the credentials"
        )
    if status in {404, 410}:
        return ResourceNotFound(f"{said}: check the address and the revision in it")
    if status in {408, 425, 429} or status >= _FIRST_SERVER_ERROR:
        after = retry_after(response.headers)
        if after is not None and after > limits.max_retry_after:
            return DownloadFailed(f"{said} and asks to wait {after:.0f} s: try again later")
        return Retryable(DownloadFailed(f"{said} again and again: try later"), after)
    return DownloadFailed(said)


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that `Retry-After` asks for, None where it is absent or malformed."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
