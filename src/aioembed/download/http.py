"""Brings one file into a partial one: requests, resumption, retries and the final check."""

from __future__ import annotations

import logging
import math
import random
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Literal

import anyio
import httpcore
import httpx
from anyio import to_thread

from .._http import RedirectRefused, Redirects, is_loopback, show_url
from .._tasks import BlockingCall, Task, spawn, to_end
from ..errors import (
    DiskFull,
    DownloadFailed,
    DownloadInterrupted,
    IntegrityError,
    InvalidConfig,
    ResourceNotFound,
    Unauthorized,
)
from .cache import Resource, Sidecar
from .hub import Hub, Linked
from .partial import Journal, Partial

__all__ = ["FetchLimits", "Report", "Timing", "Transfer"]

_logger = logging.getLogger("aioembed.download")
_warned_hosts: set[str] = set()

Report = Callable[[int, int | None], None]

_FORGIVING_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_BLOCK_SECONDS = 0.05
_PAGE_STARTS = (b"<!doctype html", b"<html")
_FIRST_SERVER_ERROR = 500
_BROKEN = (httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes \*/(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of a download.

    Attributes:
        connect: Seconds to reach the server.
        stall: Seconds in which `min_rate` must be kept up, otherwise the attempt is given up.
        total: Seconds for the whole of a fetch, pauses excluded; None for no bound.
        retries: Further attempts after one that failed. An attempt that brought at least 1 MiB
            of new bytes starts the count again.
        backoff: Seconds before the first retry; it doubles with each.
        max_backoff: Longest wait between attempts in seconds.
        max_retry_after: Longest wait that a server may ask for in seconds.
        min_rate: Bytes per second below which a transfer counts as stalled.
        redirects: Hops that are followed.

    Raises:
        InvalidConfig: A bound is negative, or a time that must pass is zero.
    """

    connect: float = 10.0
    stall: float = 30.0
    total: float | None = None
    retries: int = 5
    backoff: float = 0.5
    max_backoff: float = 30.0
    max_retry_after: float = 120.0
    min_rate: float = 1024.0
    redirects: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 0:
                raise InvalidConfig(f"{field.name} is {value}: give 0 or more")
        if not self.connect or not self.stall or self.total == 0:
            raise InvalidConfig("connect, stall and total must be longer than 0 seconds")

    @property
    def stall_bytes(self) -> int:
        """Bytes that must arrive within `stall` seconds."""
        return max(1, int(self.min_rate * self.stall))


@dataclass(frozen=True)
class Timing:
    """The clock and the waits of the fetcher, so that tests need not wait.

    Attributes:
        now: Monotonic seconds.
        sleep: Waits that many seconds.
        jitter: A number in 0..1 that spreads retries of many clients.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    jitter: Callable[[], float] = random.random

    def delay(self, limits: FetchLimits, failures: int) -> float:
        """Seconds to wait after so many failures in a row: doubling, half of it by chance."""
        longest = min(limits.max_backoff, limits.backoff * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * self.jitter())


class _Retryable(Exception):
    """An attempt failed in a way that another may mend.

    Attributes:
        error: What the caller sees if no further attempt is made.
        after: Seconds the server asked to wait, 0 to retry now, None for the usual backoff.
    """

    def __init__(self, error: Exception, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@dataclass(frozen=True)
class _Plan:
    """What to do with the partial file, given an answer.

    Attributes:
        action: `append` the body, `restart` with the body, `discard` what is here and ask again
            for everything, or take it as `complete`.
        total: Bytes of the complete file, where the answer states it.
    """

    action: Literal["append", "restart", "discard", "complete"]
    total: int | None = None


class Transfer:
    """One file on its way into one partial file.

    Args:
        resource: What is fetched.
        pinned: Hash that was recorded when the file was first trusted, None if it never was.
        target: Where it goes; claimed by this process.
        client: What sends the requests.
        hub: Its rules on tokens and mirrors.
        limits: Time limits and retries.
        timing: Clock and waits.
        report: Receives the bytes that are here and the total.
    """

    def __init__(
        self,
        resource: Resource,
        pinned: str | None,
        target: Partial,
        *,
        client: httpx.AsyncClient,
        hub: Hub,
        limits: FetchLimits,
        timing: Timing,
        report: Report,
    ) -> None:
        self._resource = resource
        self._pinned = pinned
        self._partial = target
        self._client = client
        self._hub = hub
        self._limits = limits
        self._timing = timing
        self._report = report
        self._url = hub.rewrite(httpx.URL(resource.url))
        self._in_one_piece = False

    async def run(self) -> Sidecar:
        """Fetch until the partial file is complete and verified; return its record.

        Raises:
            DownloadFailed: The server refused, or every attempt failed.
            DownloadInterrupted: The last attempt broke off or stalled; what arrived is kept.
            IntegrityError: The bytes are not the published ones; nothing is kept.
            InvalidConfig: The token or a header of the client cannot be sent.
            DiskFull: Not enough space.
            OSError: The partial file cannot be written.
        """
        failures, high = 0, self._partial.received
        while True:
            try:
                return await self._try()
            except _Retryable as failure:
                if self._partial.received >= high + _FORGIVING_BYTES:
                    failures = 0
                high = max(high, self._partial.received)
                failures += 1
                if failures > self._limits.retries:
                    raise failure.error from failure.__cause__
                after = failure.after
                if after is None:
                    after = self._timing.delay(self._limits, failures)
                _logger.info(
                    "%s (attempt %d of %d, next in %.1f s)",
                    failure,
                    failures,
                    self._limits.retries + 1,
                    after,
                )
                await self._timing.sleep(after)

    async def _try(self) -> Sidecar:
        """Fetch what is missing and check it; wrong bytes in one piece are the server's fault."""
        journal = self._partial.journal
        try:
            if journal is None or journal.total != self._partial.received:
                await self._attempt()
            return await self._check()
        except IntegrityError as exc:
            await to_thread.run_sync(self._partial.restart)
            if self._in_one_piece:
                raise
            raise _Retryable(exc, after=0.0) from exc

    async def _attempt(self) -> None:
        ranged = self._range_headers()
        async with self._open({"Accept-Encoding": "identity", **ranged}) as (response, linked):
            error = _status_error(response, self._resource.shown, self._limits)
            if error is not None:
                raise error
            plan = self._decide(response, linked, ranged=bool(ranged))
            if plan.action == "discard":
                await to_thread.run_sync(self._partial.restart)
                said = f"{self._resource.shown} answers with a range that was not asked for"
                if not ranged:
                    raise DownloadFailed(f"{said}: its server is broken")
                raise _Retryable(DownloadInterrupted(f"{said}, again and again"), after=0.0)
            journal = self._new_journal(plan, response, linked)
            if plan.action == "complete":
                await to_thread.run_sync(self._partial.note, journal)
                return
            self._in_one_piece = plan.action == "restart"
            self._refuse(response, plan.total)
            store = self._partial.restart if plan.action == "restart" else self._partial.note
            await to_thread.run_sync(store, journal)
            await self._receive(response, plan.total)

    # --- the request

    def _range_headers(self) -> dict[str, str]:
        """Return the headers that ask for the rest of the file.

        Without a validator a change on the server could not be seen, so the rest is asked for only
        if the complete file's hash is known.
        """
        received, journal = self._partial.received, self._partial.journal
        if not received or journal is None:
            return {}
        if journal.validator is not None:
            return {"Range": f"bytes={received}-", "If-Range": journal.validator}
        hash_known = bool(self._resource.sha256 or journal.linked_sha256)
        return {"Range": f"bytes={received}-"} if hash_known else {}

    @asynccontextmanager
    async def _open(self, headers: dict[str, str]) -> AsyncIterator[tuple[httpx.Response, Linked]]:
        """Send the request and follow redirects; yield the last answer, its body not read yet.

        With it comes what the hub said of the file on the way.
        """
        limits, linked = self._limits, Linked()
        redirects = Redirects(self._client, self._url, limit=limits.redirects)
        timeout = httpx.Timeout(limits.stall, connect=limits.connect, pool=None)
        while True:
            url = redirects.url
            _warn_if_plain(url)
            sent = {**headers, **self._hub.credentials(url)}
            with _translated_network_errors(url, limits):
                with anyio.fail_after(limits.connect + limits.stall):
                    response = await redirects.send(sent, timeout=timeout)
            try:
                if linked.is_empty:
                    linked = Linked.read(response.headers, trusted=self._hub.is_own(url))
                with _translated_network_errors(url, limits):
                    is_last = not redirects.follow(response)
                if is_last:
                    yield response, linked
                    return
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    # --- the answer

    def _decide(self, response: httpx.Response, linked: Linked, *, ranged: bool) -> _Plan:
        """Decide on an answer with status 200, 206 or 416."""
        headers, have, journal = response.headers, self._partial.received, self._partial.journal
        if response.status_code == httpx.codes.OK:
            return _Plan("restart", linked.size if linked.size is not None else _length(headers))
        if not ranged or journal is None or _has_changed(headers, linked, journal):
            return _Plan("discard")
        content_range = headers.get("Content-Range", "").strip()
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            unsatisfied = _UNSATISFIED.fullmatch(content_range)
            is_confirmed = (
                journal.validator is not None and _validator(headers) == journal.validator
            )
            is_complete = unsatisfied is not None and int(unsatisfied[1]) == have and is_confirmed
            return _Plan("complete", have) if is_complete else _Plan("discard")
        match = _CONTENT_RANGE.fullmatch(content_range)
        if match is None or _is_encoded(headers) or int(match[1]) != have:
            return _Plan("discard")
        total = None if match[3] == "*" else int(match[3])
        totals = {value for value in (total, linked.size, journal.total) if value is not None}
        if len(totals) > 1 or any(int(match[2]) != value - 1 for value in totals):
            return _Plan("discard")
        return _Plan("append", next(iter(totals), None))

    def _new_journal(self, plan: _Plan, response: httpx.Response, linked: Linked) -> Journal:
        headers = response.headers
        before = self._partial.journal if plan.action != "restart" else None
        return Journal(
            url=self._resource.canonical_url,
            validator=None if _is_encoded(headers) else _validator(headers),
            total=plan.total,
            linked_sha256=linked.sha256 or (before.linked_sha256 if before else None),
            linked_trusted=linked.trusted or bool(before and before.linked_trusted),
            commit=linked.commit or (before.commit if before else None),
        )

    def _refuse(self, response: httpx.Response, total: int | None) -> None:
        """Refuse a body that cannot be the file, before it is read."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and not self._resource.file_name.endswith((".html", ".htm")):
            raise self._page_error()
        size = self._resource.size
        if None not in {size, total} and size != total:
            raise IntegrityError(
                f"{self._resource.shown} has {total} bytes on the server, but {size} were "
                "published: another file lies there"
            )

    def _page_error(self) -> DownloadFailed:
        return DownloadFailed(
            f"{self._resource.shown} is a web page, not a model: use the address of the file "
            "itself (on the hub, /resolve/ in place of /blob/), or log in, to a mirror or proxy "
            "as well"
        )

    # --- the body

    async def _receive(self, response: httpx.Response, total: int | None) -> None:
        part, resource, limits = self._partial, self._resource, self._limits
        expected = total if total is not None else resource.size
        if expected is not None:
            await to_thread.run_sync(self._require_space, expected - part.received)
        _logger.info(
            "downloading %s from %s: %s bytes, %d of them here",
            resource.shown,
            response.url.host,
            "an unknown number of" if expected is None else expected,
            part.received,
        )
        self._report(part.received, expected)
        # What a mock transport answers may be read already.
        is_raw = not (_is_encoded(response.headers) or response.is_stream_consumed)
        chunks = response.aiter_raw() if is_raw else response.aiter_bytes()
        with _translated_network_errors(response.url, limits):
            await self._store(chunks, expected)
        is_framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        if expected is not None and part.received < expected and not is_framed:
            raise _Retryable(
                DownloadInterrupted(
                    f"{resource.shown} ended after {part.received} of {expected} bytes; "
                    "what arrived is kept, load again to go on"
                )
            )

    async def _store(self, chunks: AsyncIterator[bytes], expected: int | None) -> None:
        """Write and hash the body in blocks, each while the next arrives; watch that it comes.

        What had arrived when the body broke off or the task was cancelled is still written.
        """
        writer = _Writer(self._partial)
        pending: list[bytes] = []
        size = window = 0
        seen = self._partial.received
        try:
            with anyio.fail_after(self._limits.stall) as stall:
                written_at = -math.inf  # the first chunk is shown even if no other comes
                async for chunk in chunks:
                    pending.append(chunk)
                    size += len(chunk)
                    if expected is not None and seen + size > expected:
                        raise self._size_error(expected, seen + size)
                    if size < _BLOCK_BYTES and time.monotonic() - written_at < _BLOCK_SECONDS:
                        continue
                    seen += size
                    window += size
                    self._report(seen, expected)
                    left = stall.deadline - anyio.current_time()
                    if window >= self._limits.stall_bytes:
                        window, left = 0, self._limits.stall
                    stall.deadline = math.inf  # the disk's time does not count
                    await writer.wait()
                    writer.start(pending)
                    pending, size = [], 0
                    written_at = time.monotonic()
                    stall.deadline = anyio.current_time() + left
        finally:
            try:
                await to_end(writer.wait)
                if pending:
                    writer.start(pending)
                    await to_end(writer.wait)
            finally:
                with anyio.CancelScope(shield=True):
                    await _unwind(chunks)

    def _require_space(self, missing: int) -> None:
        free = self._partial.free_bytes()
        if missing > free:
            raise DiskFull(
                f"{self._resource.shown} needs {missing} more bytes, and the disk of "
                f"{self._partial.folder.parent.parent} has {free} left"
            )

    # --- the check

    async def _check(self) -> Sidecar:
        """Compare the complete file with everything that is known of it."""
        part, resource = self._partial, self._resource
        journal = part.journal or Journal(url=resource.canonical_url)
        for size in (journal.total, resource.size):
            if size not in {None, part.received}:
                raise self._size_error(size, part.received)
        sha256 = part.sha256
        self._compare(sha256, journal)
        if resource.sha256 is None:
            head = await to_thread.run_sync(part.head, 64)
            if head.lstrip().lower().startswith(_PAGE_STARTS):
                await to_thread.run_sync(part.restart)
                raise self._page_error()
        is_trusted = bool(resource.sha256 or (journal.linked_sha256 and journal.linked_trusted))
        return Sidecar(
            url=resource.canonical_url,
            file=resource.content_name(sha256),
            size=part.received,
            sha256=sha256,
            mtime_ns=0,
            etag=journal.validator,
            commit=journal.commit,
            fetched_at=datetime.now(UTC),
            trusted=is_trusted,
        )

    def _compare(self, sha256: str, journal: Journal) -> None:
        shown = self._resource.shown
        if self._resource.sha256 not in {None, sha256}:
            raise IntegrityError(
                f"{shown} has the sha256 {sha256}, but {self._resource.sha256} was published: "
                "the file was damaged on its way or replaced; nothing was kept"
            )
        if journal.linked_sha256 not in {None, sha256}:
            raise IntegrityError(
                f"{shown} has the sha256 {sha256}, but its server announced "
                f"{journal.linked_sha256}: damaged on its way; nothing was kept"
            )
        if self._resource.sha256 is None and self._pinned not in {None, sha256}:
            raise IntegrityError(
                f"{shown} has the sha256 {sha256}, but {self._pinned} was recorded when it was "
                "first downloaded: if the new file is meant, delete it from the cache first"
            )

    def _size_error(self, expected: int | None, seen: int) -> IntegrityError:
        return IntegrityError(
            f"{self._resource.shown} should have {expected} bytes, but {seen} came; "
            "nothing was kept"
        )


class _Writer:
    """Appends blocks to a partial file in a thread, one at a time."""

    def __init__(self, target: Partial) -> None:
        self._target = target
        self._task: Task[None] | None = None

    def start(self, block: list[bytes]) -> None:
        """Begin to write a block; the one before must have been waited for."""
        append = BlockingCall(partial(self._target.append, block))
        self._task = spawn(append.run, name="aioembed download: write")

    async def wait(self) -> None:
        """Return when the last block is written; what went wrong is raised, again each time."""
        if self._task is not None:
            await self._task.wait()
            if self._task.error is not None:
                raise self._task.error


def _validator(headers: httpx.Headers) -> str | None:
    """Return a strong ETag, else Last-Modified: what If-Range may carry (RFC 9110, 13.1.5)."""
    etag: str | None = headers.get("ETag")
    if etag is not None:
        return None if etag.startswith("W/") else etag
    modified: str | None = headers.get("Last-Modified")
    return modified


def _has_changed(headers: httpx.Headers, linked: Linked, journal: Journal) -> bool:
    if linked.sha256 and journal.linked_sha256 and linked.sha256 != journal.linked_sha256:
        return True
    now = _validator(headers)
    return None not in {now, journal.validator} and now != journal.validator


def _is_encoded(headers: httpx.Headers) -> bool:
    """Whether the body is compressed although identity was asked for."""
    return headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}


def _length(headers: httpx.Headers) -> int | None:
    value = headers.get("Content-Length", "")
    if _is_encoded(headers) or not (value.isascii() and value.isdigit()):
        return None
    return int(value)


async def _unwind(chunks: AsyncIterator[bytes]) -> None:
    """End a body that was not read to its end.

    Closing the generator would close only the outermost of httpx's nested ones, and trio warns of
    the others. A read that is cancelled ends them all.
    """
    with anyio.CancelScope() as scope, suppress(httpx.HTTPError, httpx.StreamError):
        scope.cancel()
        async for _ in chunks:  # what the parser holds already comes without waiting
            pass


def _warn_if_plain(url: httpx.URL) -> None:
    if url.scheme == "http" and not is_loopback(url) and url.host not in _warned_hosts:
        _warned_hosts.add(url.host)
        _logger.warning(
            "%s is fetched without encryption: give its sha256, or use https", show_url(url)
        )


@contextmanager
def _translated_network_errors(url: httpx.URL, limits: FetchLimits) -> Iterator[None]:
    """Turn what httpx and time-outs raise into `_Retryable` or `DownloadFailed`."""
    try:
        yield
    except RedirectRefused as exc:
        raise DownloadFailed(str(exc)) from exc
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise _connect_error(exc, url) from exc
    except (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError) as exc:
        raise _Retryable(
            DownloadInterrupted(
                f"{show_url(url)} went silent for {limits.stall:g} s; what arrived is kept, "
                "load again to go on"
            )
        ) from exc
    except httpx.UnsupportedProtocol as exc:
        raise DownloadFailed(f"{show_url(url)} cannot be asked for: {exc}") from exc
    except (*_BROKEN, httpx.StreamError, httpx.DecodingError) as exc:
        raise _Retryable(
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
        return _Retryable(error) if unresolved[0].errno == socket.EAI_AGAIN else error
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return DownloadFailed(f"the certificate of {url.host} is not valid: {cause}")
    return _Retryable(DownloadFailed(f"no connection to {url.host}: {str(exc) or 'timed out'}"))


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _status_error(response: httpx.Response, shown: str, limits: FetchLimits) -> Exception | None:
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
        after = _retry_after(response.headers)
        if after is not None and after > limits.max_retry_after:
            return DownloadFailed(f"{said} and asks to wait {after:.0f} s: try again later")
        return _Retryable(DownloadFailed(f"{said} again and again: try later"), after)
    return DownloadFailed(said)


def _retry_after(headers: httpx.Headers) -> float | None:
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
