"""Pause, resume and cancel one fetch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from aioembed.errors import (
    AlreadyOngoing,
    AlreadyPaused,
    DownloadCancelled,
    DownloadInProgress,
    NotActive,
)

__all__ = ["DownloadControl"]

T = TypeVar("T")


class DownloadControl:
    """The levers of one fetch: hand it to `Fetcher.fetch` and pull them from another task.

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
        """Run `work` so that the levers act on it: it is begun anew after each pause.

        Raises:
            DownloadInProgress: This control steers another fetch.
            DownloadCancelled: `cancel` was called.
        """
        if self._active:
            raise DownloadInProgress("this control steers a download that is under way")
        self._active, self._cancelled = True, False
        try:
            while True:
                with anyio.CancelScope() as self._scope:
                    return await work()
                if self._resumed is not None:
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
