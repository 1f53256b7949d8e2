"""Blocking calls in worker threads: their errors, and none that is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

__all__ = ["BlockingCall", "run_in_thread"]

R = TypeVar("R")


async def run_in_thread(function: Callable[[], R], *, limiter: CapacityLimiter | None = None) -> R:
    """Like `anyio.to_thread.run_sync`, for functions that often raise.

    There, an error is kept by a frame that its traceback refers to: a cycle that holds what the
    function worked on until the next garbage collection.

    Args:
        function: What to run.
        limiter: Bounds how many threads run at the same time.
    """
    errors: list[Exception] = []

    def work() -> list[R]:
        try:
            return [function()]
        except Exception as error:  # noqa: BLE001  # raised again below
            errors.append(error)
            return []

    results = await to_thread.run_sync(work, limiter=limiter)
    if errors:
        raise errors.pop()
    return results[0]


class BlockingCall(Generic[R]):
    """A call that, once begun in a worker thread, is always waited for.

    `anyio.to_thread.run_sync` does so for anyio's own cancellation, but asyncio's `Task.cancel`
    and `wait_for` go through its shield. Here they too are held back until the thread is done,
    and what the call returned or raised can still be read afterwards.

    Args:
        function: What to run; takes no arguments.

    Attributes:
        result: What it returned, None before that.
        error: What it raised, None if it did not.
    """

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._claim = threading.Lock()
        self._begun = False
        self._dropped = False
        self._finished = threading.Event()
        self.result: R | None = None
        self.error: BaseException | None = None

    async def wait(self, limiter: CapacityLimiter | None = None) -> None:
        """Run the function and return when it has ended, however it ended.

        Args:
            limiter: Bounds how many threads run at the same time.

        Raises:
            BaseException: The caller's cancellation, when the function has ended or was never
                begun. Never what the function raised: that is in `error`.
        """
        try:
            await to_thread.run_sync(self._work, limiter=limiter)
        except BaseException:
            await self._join()
            raise

    async def run(self, limiter: CapacityLimiter | None = None) -> R:
        """Like `wait`, but return the function's result or raise what it raised.

        Args:
            limiter: Bounds how many threads run at the same time.
        """
        await self.wait(limiter)
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # R may itself allow None

    def _work(self) -> None:
        with self._claim:
            if self._dropped:
                return
            self._begun = True
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  # kept for the caller
            self.error = error
        finally:
            self._finished.set()

    async def _join(self) -> None:
        """Wait for the thread, or see to it that the function is never begun."""
        with self._claim:
            self._dropped = not self._begun
        cancelled = anyio.get_cancelled_exc_class()
        while self._begun and not self._finished.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(self._finished.wait)
            except cancelled:
                continue
