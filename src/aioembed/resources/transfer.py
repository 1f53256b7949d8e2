"""Brings one file into a part: attempts, resumption, retries and the final check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from anyio import to_thread

from aioembed.errors import (
    DiskFull,
    DownloadFailed,
    DownloadInterrupted,
    IntegrityError,
)

from .bodies import open_body
from .exchange import (
    Answer,
    Retryable,
    open_answer,
    status_error,
    translated_network_errors,
)
from .hub import Hub
from .limits import FetchLimits, Timing
from .partial import Partial
from .pipeline import pump
from .records import Journal, Sidecar
from .replies import (
    Plan,
    decide,
    is_encoded,
    is_framed,
    range_headers,
    validator,
)
from .resource import Resource

__all__ = ["Report", "Transfer", "Wire"]

_FORGIVING_BYTES = 1 << 20
_PAGE_STARTS = (b"<!doctype html", b"<html")

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Wire:
    """What every transfer of a fetch shares."""

    client: httpx.AsyncClient
    hub: Hub
    limits: FetchLimits
    timing: Timing


class Transfer:
    """One file on its way into one part.

    Args:
        resource: What is fetched.
        pinned: Hash that was recorded when the file was first trusted, None if it never was.
        part: Where it goes; claimed by this process.
        wire: Client, rules and bounds.
        report: Told the bytes that are here and the total.
    """

    def __init__(
        self, resource: Resource, pinned: str | None, part: Partial, wire: Wire, report: Report
    ) -> None:
        self._resource = resource
        self._pinned = pinned
        self._part = part
        self._wire = wire
        self._report = report
        self._url = wire.hub.rewrite(httpx.URL(resource.url))
        self._seen = part.received
        self._in_one_piece = False

    async def run(self) -> Sidecar:
        """Fetch until the part is whole and verified; return its record.

        Raises:
            DownloadFailed: The server refused, or every attempt failed.
            DownloadInterrupted: The last attempt broke off or stalled; the part is kept.
            IntegrityError: The bytes are not the published ones; the part is emptied.
            DiskFull: Not enough space.
            OSError: The part cannot be written.
        """
        failures, high = 0, self._part.received
        while True:
            try:
                return await self._try()
            except Retryable as failure:
                if self._part.received >= high + _FORGIVING_BYTES:
                    failures = 0
                high = max(high, self._part.received)
                failures += 1
                limits, timing = self._wire.limits, self._wire.timing
                if failures > limits.retries:
                    raise failure.error from failure.__cause__
                after = timing.delay(limits, failures) if failure.after is None else failure.after
                await timing.sleep(after)

    async def _try(self) -> Sidecar:
        """Fetch what is missing and check it; wrong bytes in one piece are the server's fault."""
        try:
            if not self._is_whole():
                await self._attempt()
            return await self._check()
        except IntegrityError as exc:
            await to_thread.run_sync(self._part.restart)
            if self._in_one_piece:
                raise
            raise Retryable(exc, after=0.0) from exc

    def _is_whole(self) -> bool:
        journal = self._part.journal
        return journal is not None and journal.total == self._part.received

    async def _attempt(self) -> None:
        part, shown = self._part, self._resource.shown
        journal = part.journal
        hash_known = bool(self._resource.sha256 or (journal and journal.linked_sha256))
        wanted = range_headers(part.received, journal, hash_known=hash_known)
        headers = {"Accept-Encoding": "identity", **wanted}
        wire = self._wire
        async with open_answer(
            wire.client, self._url, headers, hub=wire.hub, limits=wire.limits
        ) as answer:
            error = status_error(answer.response, shown, wire.limits)
            if error is not None:
                raise error
            plan = decide(
                answer.response.status_code,
                answer.response.headers,
                answer.linked,
                have=part.received,
                journal=journal,
                ranged=bool(wanted),
            )
            await self._follow(plan, answer)

    async def _follow(self, plan: Plan, answer: Answer) -> None:
        if plan.action == "discard":
            await self._discard(ranged="Range" in answer.response.request.headers)
        journal = self._journal(plan, answer)
        if plan.action == "complete":
            await to_thread.run_sync(self._part.note, journal)
            return
        self._in_one_piece = plan.action == "restart"
        self._refuse_page(answer.response)
        self._refuse_size(plan.total)
        if plan.action == "restart":
            await to_thread.run_sync(self._part.restart, journal)
        else:
            await to_thread.run_sync(self._part.note, journal)
        await self._receive(answer.response, plan.total)

    async def _discard(self, *, ranged: bool) -> None:
        await to_thread.run_sync(self._part.restart)
        said = f"{self._resource.shown} answers with a range that was not asked for"
        if not ranged:
            raise DownloadFailed(f"{said}: its server is broken")
        raise Retryable(DownloadInterrupted(f"{said}, again and again"), after=0.0)

    def _journal(self, plan: Plan, answer: Answer) -> Journal:
        headers, linked = answer.response.headers, answer.linked
        before = self._part.journal if plan.action != "restart" else None
        return Journal(
            url=self._resource.canonical_url,
            validator=None if is_encoded(headers) else validator(headers),
            total=plan.total,
            linked_sha256=linked.sha256 or (before.linked_sha256 if before else None),
            linked_trusted=linked.trusted or bool(before and before.linked_trusted),
            commit=linked.commit or (before.commit if before else None),
        )

    def _refuse_page(self, response: httpx.Response) -> None:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and not self._resource.file_name.endswith((".html", ".htm")):
            raise self._page_error()

    def _page_error(self) -> DownloadFailed:
        return DownloadFailed(
            f"{self._resource.shown} is a web page, no model: use the address of the file itself "
            "(on the hub, /resolve/ in place of /blob/), or log in"
        )

    def _refuse_size(self, total: int | None) -> None:
        size = self._resource.size
        if None not in {size, total} and size != total:
            raise IntegrityError(
                f"{self._resource.shown} has {total} bytes on the server, but {size} were "
                "published: another file lies there"
            )

    async def _receive(self, response: httpx.Response, total: int | None) -> None:
        part, limits = self._part, self._wire.limits
        expected = total if total is not None else self._resource.size
        if expected is not None:
            await to_thread.run_sync(self._require_space, expected - part.received)
        self._seen = part.received
        self._report(self._seen, expected)
        body = open_body(response, decode=is_encoded(response.headers))

        def note(count: int) -> None:
            self._seen += count
            self._report(self._seen, expected)
            if expected is not None and self._seen > expected:
                raise self._size_error(expected)

        with translated_network_errors(response.url, limits):
            await pump(body, part.append, note, limits)
        if expected is not None and part.received < expected and not is_framed(response.headers):
            raise Retryable(
                DownloadInterrupted(
                    f"{self._resource.shown} ended after {part.received} of {expected} bytes; "
                    "what arrived is kept, load again to go on"
                )
            )

    def _require_space(self, missing: int) -> None:
        free = self._part.free_bytes()
        if missing > free:
            raise DiskFull(
                f"{self._resource.shown} needs {missing} more bytes, and the disk of "
                f"{self._part.folder.parent.parent} has {free} left"
            )

    async def _check(self) -> Sidecar:
        """Compare the whole part with everything that is known of the file."""
        part, resource = self._part, self._resource
        journal = part.journal or Journal(url=resource.canonical_url)
        for size in (journal.total, resource.size):
            if size not in {None, part.received}:
                raise self._size_error(size)
        sha256 = part.sha256
        self._compare(sha256, journal)
        if await to_thread.run_sync(self._is_page):
            await to_thread.run_sync(part.restart)
            raise self._page_error()
        return Sidecar(
            url=resource.canonical_url,
            file=resource.file_name,
            size=part.received,
            sha256=sha256,
            mtime_ns=0,
            etag=journal.validator,
            commit=journal.commit,
            fetched_at=datetime.now(UTC),
            trusted=bool(resource.sha256 or (journal.linked_sha256 and journal.linked_trusted)),
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

    def _size_error(self, expected: int | None) -> IntegrityError:
        return IntegrityError(
            f"{self._resource.shown} should have {expected} bytes, but {self._seen} came; "
            "nothing was kept"
        )

    def _is_page(self) -> bool:
        if self._resource.sha256 is not None:
            return False
        return self._part.head(64).lstrip().lower().startswith(_PAGE_STARTS)
