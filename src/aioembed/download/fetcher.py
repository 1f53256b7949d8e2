"""Brings files into the cache: one transfer per file, shared by everyone who wants it."""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
import httpx
from anyio import to_thread
from anyio.lowlevel import RunVar

from .._http import new_client, show_url
from .._tasks import BlockingCall, Task, spawn
from ..errors import (
    AioembedError,
    AlreadyOngoing,
    AlreadyPaused,
    DownloadCancelled,
    DownloadFailed,
    DownloadInProgress,
    DownloadInterrupted,
    NotActive,
    OfflineError,
)
from ..options import Verify
from .cache import Cache, CachedFile, Entry, Resource, translated_file_errors
from .http import FetchLimits, Report, Timing, Transfer
from .hub import Hub, is_offline
from .lock import process_lock
from .partial import Partial, largest_partial
from .progress import Progress, ProgressMeter

__all__ = ["DownloadControl", "Fetcher"]

_logger = logging.getLogger("aioembed.download")

T = TypeVar("T")
_Key = tuple[str, str, str | None, int | None]


class DownloadControl:
    """Controls of one fetch: pass it to `Fetcher.fetch` and use it from another task.

    Pausing closes the connection and keeps what arrived; resuming asks the server for the rest.
    A file that several callers want goes on for the others. Its methods belong to the event
    loop's thread.
    """

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._resumed: anyio.Event | None = None
        self._active = False
        self._cancelled = False

    @property
    def is_active(self) -> bool:
        """Whether a fetch is under way, paused or not."""
        return self._active

    @property
    def is_paused(self) -> bool:
        """Whether the fetch is paused."""
        return self._resumed is not None

    def pause(self) -> None:
        """Stop the transfer and keep what arrived.

        Raises:
            NotActive: No fetch is under way.
            AlreadyPaused: It is paused.
        """
        self._require_active("pause")
        if self._resumed is not None:
            raise AlreadyPaused("the download is paused already: resume() or cancel() it")
        self._resumed = anyio.Event()
        self._interrupt()

    def resume(self) -> None:
        """Go on after a pause.

        Raises:
            NotActive: No fetch is under way.
            AlreadyOngoing: It is not paused.
        """
        self._require_active("resume")
        if self._resumed is None:
            raise AlreadyOngoing("the download is not paused")
        resumed, self._resumed = self._resumed, None
        resumed.set()

    def cancel(self) -> None:
        """End the fetch with `DownloadCancelled`, and keep what arrived for a later one.

        Raises:
            NotActive: No fetch is under way.
        """
        self._require_active("cancel")
        if self._resumed is not None:
            self.resume()
        self._cancelled = True
        self._interrupt()

    async def supervise(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` so that the controls act on it: it is started again after each pause.

        Raises:
            DownloadInProgress: This control is used by another fetch.
            DownloadCancelled: `cancel` was called.
        """
        if self._active:
            raise DownloadInProgress("this control is used by a download that is under way")
        self._active, self._cancelled = True, False
        try:
            while True:
                with anyio.CancelScope() as self._scope:
                    return await work()
                while self._resumed is not None:  # again: resumed and paused in one turn
                    await self._resumed.wait()
                if self._cancelled:
                    raise DownloadCancelled("the download was cancelled; what arrived is kept")
        finally:
            self._active, self._scope, self._resumed = False, None, None

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _require_active(self, action: str) -> None:
        if not self._active or self._cancelled:
            raise NotActive(f"no download to {action}")


class _Shared:
    """A transfer under way, and who wants to know of it."""

    def __init__(self, work: Callable[[Report], Awaitable[CachedFile]]) -> None:
        self.watchers: list[Report] = []
        self.latest: tuple[int, int | None] | None = None
        self.task: Task[CachedFile] = spawn(partial(work, self._report), name="aioembed download")

    def _report(self, received: int, total: int | None) -> None:
        self.latest = received, total
        for watcher in tuple(self.watchers):
            watcher(received, total)


_shared: RunVar[dict[_Key, _Shared]] = RunVar("aioembed_downloads")


async def _share(
    key: _Key, watcher: Report, work: Callable[[Report], Awaitable[CachedFile]]
) -> CachedFile:
    """Return what `work` returns, or what the transfer under way for `key` does.

    It runs as long as anyone waits for it. A failure reaches every caller that waited; a later
    call tries again.

    Args:
        key: What is fetched.
        watcher: Sees the progress, whoever started the transfer.
        work: Does it; receives what to report to.
    """
    table = _shared.get(None)
    if table is None:
        table = {}
        _shared.set(table)
    shared = table.get(key)
    if shared is None or shared.task.done:
        shared = table[key] = _Shared(work)
    shared.watchers.append(watcher)
    try:
        if shared.latest is not None:
            watcher(*shared.latest)
        await shared.task.wait()
    finally:
        shared.watchers.remove(watcher)
        if not shared.watchers:
            if table.get(key) is shared:
                del table[key]
            if not shared.task.done:
                shared.task.cancel()
                with anyio.CancelScope(shield=True):
                    await shared.task.wait()
    task = shared.task
    if task.result is not None:
        return task.result
    if isinstance(task.error, AioembedError):
        raise copy.copy(task.error) from task.error
    if isinstance(task.error, Exception):
        _logger.error("a download failed in a way that was not foreseen", exc_info=task.error)
        raise DownloadFailed(
            f"the download failed unexpectedly ({type(task.error).__name__})"
        ) from task.error
    raise DownloadInterrupted("the event loop is ending; what arrived is kept")


class Fetcher:
    """Downloads files into a cache.

    Creating it does no I/O. It may be used by many tasks at the same time; however many want a
    file, in this process or another on this machine, it is transferred once.

    Args:
        cache: Where the files go.
        http_client: Used as it is (proxies, certificates, headers) and left open; None makes one
            for each transfer. Its headers, cookies and credentials stay with the first origin of
            a chain of redirects, all but `accept`, `accept-language` and `user-agent`.
        offline: Whether to use the cache only; None asks the variable `HF_HUB_OFFLINE`.
        verify: `recorded` hashes a cached file if its size or time changed since it was
            recorded, `always` hashes it each time.
        token: For the hub, never sent elsewhere; None takes `HF_TOKEN`, an empty string none.
        endpoint: A mirror that stands in for `https://huggingface.co`; None takes `HF_ENDPOINT`.
        limits: Time limits and retries.
        timing: Clock and waits, for tests.

    Raises:
        InvalidConfig: The endpoint is not a URL.
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
        # The environment's own settings are read when something must be downloaded.
        self._hub = None if endpoint is None else Hub.configured(endpoint, token)
        self._token = token
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
            on_progress: Receives the progress of all files together about 20 times a second, in
                the event loop's thread; one that raises is logged. Not called if all files are
                cached.
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
            InvalidConfig: The token, the endpoint, a proxy or another setting cannot be used.
            DiskFull: There is no space.
            CacheUnwritable: The cache cannot be written.
            DownloadCancelled: `control.cancel()` was called.
            DownloadInProgress: `control` is used by another fetch.
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
        sizes = [r.expected_size if r.size is None else r.size for r in wanted]
        meter = ProgressMeter(sizes, on_progress, clock=self._timing.now)
        control = control or DownloadControl()
        fetched = await control.supervise(lambda: self._fetch_all(wanted, meter))
        meter.finish()
        return fetched

    async def _look_up(self, resources: Iterable[Resource]) -> list[CachedFile | None]:
        return [await self._cache.find(r, verify=self._verify) for r in resources]

    async def _fetch_all(
        self, wanted: Sequence[Resource], meter: ProgressMeter
    ) -> list[CachedFile]:
        """Fetch all side by side; the first failure stops the others and is raised as it is."""
        results: dict[int, CachedFile] = {}
        failures: list[Exception] = []

        async def fetch(index: int) -> None:
            try:
                results[index] = await self._fetch_one(wanted[index], partial(meter.update, index))
            except AioembedError as exc:
                failures.append(exc)
                group.cancel_scope.cancel()

        with anyio.move_on_after(self._limits.total) as limit:
            async with anyio.create_task_group() as helpers:
                helpers.start_soon(meter.keep_reporting)
                async with anyio.create_task_group() as group:
                    for index in range(len(wanted)):
                        group.start_soon(fetch, index)
                helpers.cancel_scope.cancel()
        if failures:
            raise failures[0]
        if limit.cancelled_caught:
            raise DownloadInterrupted(
                f"the download took longer than {self._limits.total} s; what arrived is kept, "
                "load again to go on"
            )
        return [results[index] for index in range(len(wanted))]

    async def _fetch_one(self, resource: Resource, watcher: Report) -> CachedFile:
        with translated_file_errors(self._cache.directory):
            root = await to_thread.run_sync(self._cache.directory.resolve)
        key = (str(root), resource.key, resource.sha256, resource.size)
        cached = await _share(key, watcher, partial(self._obtain, resource))
        watcher(cached.size, cached.size)
        return cached

    async def _obtain(self, resource: Resource, report: Report) -> CachedFile:
        """Fetch a file with the lock held, unless another process has brought it meanwhile."""
        entry = self._cache.entry(resource)

        async def follow_other() -> None:
            report(*await to_thread.run_sync(largest_partial, entry.folder))

        with translated_file_errors(self._cache.directory):
            await to_thread.run_sync(entry.prepare)
            async with process_lock(entry.lock_path, follow_other):
                found = await self._cache.find(resource)
                if found is not None:
                    return found
                return await self._transfer(resource, entry, report)

    async def _transfer(self, resource: Resource, entry: Entry, report: Report) -> CachedFile:
        began = self._timing.now()
        sidecar = await to_thread.run_sync(entry.record)
        pinned = sidecar.sha256 if sidecar is not None and not sidecar.trusted else None
        async with _claimed(entry) as target, _open_client(self._client) as client:
            transfer = Transfer(
                resource,
                pinned,
                target,
                client=client,
                hub=self._hub or Hub.configured(token=self._token),
                limits=self._limits,
                timing=self._timing,
                report=report,
            )
            sidecar = await transfer.run()
            cached = await BlockingCall(partial(entry.publish, target, sidecar)).run()
        seconds = self._timing.now() - began
        _logger.info("downloaded %s: %d bytes in %.1f s", resource.shown, cached.size, seconds)
        if resource.expected_size not in {None, cached.size}:
            _logger.warning(
                "%s has %d bytes, but %d were published for it: another version may lie there",
                resource.shown,
                cached.size,
                resource.expected_size,
            )
        if not cached.trusted and pinned is None:
            _logger.warning(
                "nobody published a hash of %s: its first download is trusted, and its sha256 %s "
                "is required from now on",
                show_url(cached.url),
                cached.sha256,
            )
        return cached


@asynccontextmanager
async def _claimed(entry: Entry) -> AsyncIterator[Partial]:
    """Take over a partial file, and leave what is not published for a later download."""
    claim = BlockingCall(partial(Partial.claim, entry.folder))
    try:
        yield await claim.run()
    finally:
        if claim.result is not None:
            with anyio.CancelScope(shield=True):
                await BlockingCall(claim.result.release).run()


@asynccontextmanager
async def _open_client(given: httpx.AsyncClient | None) -> AsyncIterator[httpx.AsyncClient]:
    """Yield the caller's client as it is, or one of our own that is closed afterwards."""
    if given is not None:
        yield given
        return
    async with await BlockingCall(new_client).run() as client:
        yield client
