"""Brings files into the cache: streamed, resumable, verified, observable."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio import to_thread

from aioembed.errors import (
    AioembedError,
    DownloadFailed,
    DownloadInterrupted,
    OfflineError,
)

from . import store
from .cache import Cache
from .control import DownloadControl
from .faults import translated_file_errors
from .flights import Key, share
from .hub import Hub, is_offline
from .layout import Entry
from .limits import FetchLimits, Timing
from .locks import process_lock
from .partial import Partial
from .progress import Progress, ProgressMeter
from .records import Journal, Sidecar, read_record
from .resource import CachedFile, Resource
from .store import Verify
from .transfer import Report, Transfer, Wire
from .transport import open_client

__all__ = ["Fetcher"]

_logger = logging.getLogger("aioembed.resources")


class Fetcher:
    """Downloads files into a cache.

    Creating it does no I/O. It may be used by many tasks at once; however many want a file, in
    this process or another on this machine, it is transferred once.

    Args:
        cache: Where the files go.
        http_client: Used as it is (proxies, certificates, headers) and left open; None makes one
            for each fetch. Its credentials stay with the first origin of a chain of redirects.
        offline: Whether to use the cache only; None asks the variable `HF_HUB_OFFLINE`.
        verify: `recorded` hashes a cached file if its size or time changed since it was
            recorded, `always` hashes it each time.
        token: For the hub, never sent elsewhere; None takes `HF_TOKEN`, an empty string none.
        endpoint: A mirror that stands in for `https://huggingface.co`; None takes `HF_ENDPOINT`.
        limits: Time limits and retries.
        timing: Clock and waits, for tests.

    Raises:
        InvalidConfig: The endpoint is no URL.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        http_client: httpx.AsyncClient | None = None,
        offline: bool | None = None,
        verify: Verify = "recorded",
        token: str | None = None,
        endpoint: str | None = None,
        limits: FetchLimits | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._cache = cache
        self._client = http_client
        self._offline = is_offline(offline)
        self._verify: Verify = verify
        self._hub = Hub.configured(endpoint, token)
        self._limits = limits or FetchLimits()
        self._timing = timing or Timing()

    async def find_cached(self, resources: Iterable[Resource]) -> list[CachedFile] | None:
        """Return the files if all of them are in the cache, None otherwise; no network is used.

        Raises:
            IntegrityError: A cached file is not what was recorded (see `Cache.find`).
            CacheUnwritable: The cache cannot even be read.
        """
        found = await self._look_up(resources)
        files = [file for file in found if file is not None]
        return files if len(files) == len(found) else None

    async def fetch(
        self,
        resources: Sequence[Resource],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        control: DownloadControl | None = None,
    ) -> list[CachedFile]:
        """Return the files, downloading those that are not in the cache.

        Cancelling keeps what arrived, and the next fetch goes on from there.

        Args:
            resources: What is wanted; several are fetched side by side.
            on_progress: Told of all files together about 20 times a second, in the event loop's
                thread; one that raises is logged. Not called if all files are cached.
            control: Pauses, resumes and cancels.

        Returns:
            The files in the order of `resources`.

        Raises:
            OfflineError: Offline, and a file is not cached.
            ResourceNotFound: The server has no such file.
            Unauthorized: The server wants a token, or another one.
            DownloadInterrupted: The connection broke or stalled, again and again, or `total`
                seconds passed; what arrived is kept.
            DownloadFailed: The server or the network refused otherwise.
            IntegrityError: The bytes are not those that were published or recorded.
            DiskFull: There is no space.
            CacheUnwritable: The cache cannot be written.
            DownloadCancelled: `control.cancel()` was called.
            DownloadInProgress: `control` steers another fetch.
        """
        wanted = tuple(resources)
        found = await self._look_up(wanted)
        files = [file for file in found if file is not None]
        if len(files) == len(wanted):
            return files
        missing = [r for r, file in zip(wanted, found, strict=True) if file is None]
        if self._offline:
            raise OfflineError(
                f"{missing[0].shown} is not in the cache {self._cache.directory}, and offline: "
                "download it once while online (aioembed download), or copy the cache"
            )
        meter = ProgressMeter([r.size for r in wanted], on_progress, clock=self._timing.now)
        control = control or DownloadControl()
        fetched = await control.supervise(lambda: self._fetch_within(wanted, meter))
        meter.finish()
        return fetched

    async def _look_up(self, resources: Iterable[Resource]) -> list[CachedFile | None]:
        return [await self._cache.find(r, verify=self._verify) for r in resources]

    async def _fetch_within(
        self, wanted: Sequence[Resource], meter: ProgressMeter
    ) -> list[CachedFile]:
        with anyio.move_on_after(self._limits.total):
            return await self._fetch_all(wanted, meter)
        raise DownloadInterrupted(
            f"the download took longer than {self._limits.total} s; what arrived is kept, "
            "load again to go on"
        )

    async def _fetch_all(
        self, wanted: Sequence[Resource], meter: ProgressMeter
    ) -> list[CachedFile]:
        return await _gather(
            [
                partial(self._fetch_one, resource, partial(meter.update, index))
                for index, resource in enumerate(wanted)
            ],
            beside=meter.keep_telling,
        )

    async def _fetch_one(self, resource: Resource, watcher: Report) -> CachedFile:
        root = await to_thread.run_sync(self._cache.directory.resolve)
        key: Key = (str(root), resource.key, resource.sha256, resource.size)
        cached = await share(key, watcher, partial(self._obtain, resource))
        watcher(cached.size, cached.size)
        return cached

    async def _obtain(self, resource: Resource, report: Report) -> CachedFile:
        """Fetch a file with the lock held, unless another process has brought it meanwhile."""
        entry = self._cache.entry(resource)
        found = await self._cache.find(resource)
        if found is not None:
            return found
        with translated_file_errors(self._cache.directory):
            await to_thread.run_sync(entry.prepare)
            async with process_lock(entry.lock_path, partial(_follow_other, entry, report)):
                found = await self._cache.find(resource)
                if found is not None:
                    return found
                pinned = await to_thread.run_sync(_pinned_hash, entry)
                async with _claimed_part(entry) as part, open_client(self._client) as client:
                    wire = Wire(client, self._hub, self._limits, self._timing)
                    sidecar = await Transfer(resource, pinned, part, wire, report).run()
                    return await to_thread.run_sync(store.publish, entry, part, sidecar)


@asynccontextmanager
async def _claimed_part(entry: Entry) -> AsyncIterator[Partial]:
    """Take a part over; leave what is unpublished for a later download."""
    folder: Path | None = None
    part: Partial | None = None

    def take() -> None:
        nonlocal folder, part
        folder = entry.claim_part()
        part = Partial.open(folder)

    def leave() -> None:
        if part is not None:
            part.close()
        if folder is not None and folder.is_dir():
            entry.release_part(folder)

    try:
        await to_thread.run_sync(take)
        assert part is not None  # noqa: S101  # `take` opened it or raised
        yield part
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(leave)


async def _follow_other(entry: Entry, report: Report) -> None:
    """Report how far the process is that holds the lock."""
    received, total = await to_thread.run_sync(_look_at_parts, entry)
    report(received, total)


def _look_at_parts(entry: Entry) -> tuple[int, int | None]:
    journals = [read_record(Journal, part / "journal.json") for part in entry.parts()]
    totals = [journal.total for journal in journals if journal and journal.total is not None]
    return entry.part_size(), max(totals, default=None)


def _pinned_hash(entry: Entry) -> str | None:
    """The hash of a file that was trusted on first use."""
    sidecar = read_record(Sidecar, entry.record_path)
    return sidecar.sha256 if sidecar is not None and not sidecar.trusted else None


async def _gather(
    works: Sequence[Callable[[], Awaitable[CachedFile]]],
    *,
    beside: Callable[[], Coroutine[Any, Any, None]],
) -> list[CachedFile]:
    """Run all side by side; the first failure stops the others and is raised as it is.

    Args:
        works: What to wait for.
        beside: Runs meanwhile, until it is cancelled.
    """
    results: dict[int, CachedFile] = {}
    failures: list[AioembedError] = []

    async def run(index: int, work: Callable[[], Awaitable[CachedFile]]) -> None:
        try:
            results[index] = await work()
        except AioembedError as exc:
            failures.append(exc)
            group.cancel_scope.cancel()
        except Exception as exc:
            _logger.exception("a download failed in a way that was not foreseen")
            failure = DownloadFailed(f"the download failed unexpectedly ({type(exc).__name__})")
            failure.__cause__ = exc
            failures.append(failure)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as besides:
        besides.start_soon(beside)
        async with anyio.create_task_group() as group:
            for index, work in enumerate(works):
                group.start_soon(run, index, work)
        besides.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(works))]
