"""Batches what is waiting and runs it, without a task of its own.

The first caller that finds a free place runs the batch it belongs to, and then appoints the
caller that has waited longest. It knows nothing of what the items are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio

from ._tasks import BlockingCall
from .errors import InvalidConfig, ModelClosed

__all__ = ["Scheduler"]

_log = logging.getLogger("aioembed.scheduler")

T = TypeVar("T")
R = TypeVar("R")


class _Entry(Generic[T, R]):
    """One item: woken with its outcome, or to lead the next batch itself."""

    __slots__ = ("arrived", "error", "gone", "item", "leads", "result", "woken")

    def __init__(self, item: T, arrived: float) -> None:
        self.item = item
        self.arrived = arrived
        self.woken = anyio.Event()
        self.leads = False
        self.gone = False
        self.result: R | None = None
        self.error: BaseException | None = None


class Scheduler(Generic[T, R]):
    """Runs items in worker threads, in batches of what is waiting.

    Args:
        run: Takes the items of one batch, in a worker thread, and returns their results in the
            same order. If it raises for several items, it is called again for each of them
            alone, so that only those at fault fail.
        max_batch: Most items in one batch.
        workers: How many batches may run at the same time.
        max_wait: Seconds that an item may wait for others to fill its batch; at 0 a batch is
            what waits already when a worker is free.
        clock: Tells seconds.
        on_running: Called with the number of running batches whenever it changes.

    Raises:
        InvalidConfig: `max_batch` or `workers` is below 1, or `max_wait` is negative.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        *,
        max_batch: int = 1,
        workers: int = 1,
        max_wait: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_running: Callable[[int], object] = lambda _running: None,
    ) -> None:
        if max_batch < 1 or workers < 1 or not max_wait >= 0:
            raise InvalidConfig(
                f"max_batch ({max_batch}) and workers ({workers}) must be at least 1, and "
                f"max_wait ({max_wait}) at least 0 seconds"
            )
        self._run = run
        self._max_batch = max_batch
        self._workers = self._free = workers
        self._max_wait = max_wait
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(workers)
        self._on_running = on_running
        self._running = 0
        self._waiting: deque[_Entry[T, R]] = deque()
        self._filled: anyio.Event | None = None
        self._closed = False
        self._all_free: anyio.Event | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """Run one item, in a batch with others that wait at the same time, and return its result.

        Cancelling removes an item that waits. A batch that runs is not interrupted: its leading
        caller is let go when it ends, the others at once.

        Raises:
            ModelClosed: The scheduler was closed before the item could run.
        """
        if self._closed:
            raise _closed()
        entry: _Entry[T, R] = _Entry(item, self._clock())
        if self._free:
            self._free -= 1
            entry.leads = True
        else:
            self._waiting.append(entry)
            self._tell_if_filled()
            await self._wait(entry)
        if entry.leads:
            await self._lead(entry)
        if entry.error is not None:
            raise entry.error.with_traceback(None)
        return entry.result  # type: ignore[return-value]  # R may itself allow None

    async def aclose(self) -> None:
        """Refuse what waits and what comes, and return when nothing runs any more. Idempotent."""
        self._closed = True
        while self._waiting:
            entry = self._waiting.popleft()
            entry.error = _closed()
            entry.woken.set()
        self._tell_if_filled()
        while self._free < self._workers:
            if self._all_free is None:
                self._all_free = anyio.Event()
            await self._all_free.wait()

    async def _wait(self, entry: _Entry[T, R]) -> None:
        try:
            await entry.woken.wait()
        except BaseException:
            entry.gone = True
            if entry.leads:
                self._hand_over()
            elif entry in self._waiting:
                self._waiting.remove(entry)
            raise

    async def _lead(self, leader: _Entry[T, R]) -> None:
        try:
            await self._gather(leader)
            if not self._closed:
                await self._run_batch(leader)
            else:
                leader.error = _closed()
        finally:
            self._hand_over()

    async def _gather(self, leader: _Entry[T, R]) -> None:
        """Wait until the batch is full, or its first item has waited long enough."""
        left = leader.arrived + self._max_wait - self._clock()
        if self._max_wait == 0 or left <= 0 or self._is_filled():
            return
        if self._filled is None:
            self._filled = anyio.Event()
        with anyio.move_on_after(left):
            await self._filled.wait()

    def _is_filled(self) -> bool:
        return self._closed or len(self._waiting) >= self._max_batch - 1

    def _tell_if_filled(self) -> None:
        if self._filled is not None and self._is_filled():
            self._filled.set()
            self._filled = None

    async def _run_batch(self, leader: _Entry[T, R]) -> None:
        count = min(self._max_batch - 1, len(self._waiting))
        batch = [leader, *(self._waiting.popleft() for _ in range(count))]
        call = BlockingCall(lambda: self._compute(batch))
        self._count_running(1)
        try:
            await call.wait(self._limiter)
        finally:
            self._count_running(-1)
            self._deliver(batch, call)

    def _compute(self, batch: list[_Entry[T, R]]) -> bool:
        """Run what is still wanted of a batch, in the worker thread."""
        wanted = [entry for entry in batch if not entry.gone]
        try:
            results = self._run([entry.item for entry in wanted])
            for entry, result in zip(wanted, results, strict=True):
                entry.result = result
        except Exception as error:
            if len(wanted) == 1:
                raise
            _log.debug("a batch of %d failed; its items run alone", len(wanted), exc_info=error)
            for entry in wanted:
                self._compute_alone(entry)
        return True

    def _compute_alone(self, entry: _Entry[T, R]) -> None:
        try:
            (entry.result,) = self._run([entry.item])
        except Exception as error:  # noqa: BLE001  # kept for the caller
            entry.error = error

    def _count_running(self, change: int) -> None:
        self._running += change
        self._on_running(self._running)

    def _deliver(self, batch: list[_Entry[T, R]], call: BlockingCall[bool]) -> None:
        if call.result is None and call.error is None:
            self._requeue(batch[1:])
            return
        for entry in batch:
            entry.error = entry.error or call.error
            entry.woken.set()

    def _requeue(self, entries: list[_Entry[T, R]]) -> None:
        """Put back what a leader took that was cancelled before the call began."""
        if self._closed:
            for entry in entries:
                entry.error = _closed()
                entry.woken.set()
        else:
            self._waiting.extendleft(entry for entry in reversed(entries) if not entry.gone)

    def _hand_over(self) -> None:
        if self._waiting:
            entry = self._waiting.popleft()
            entry.leads = True
            entry.woken.set()
            return
        self._free += 1
        if self._free == self._workers and self._all_free is not None:
            self._all_free.set()
            self._all_free = None


def _closed() -> ModelClosed:
    return ModelClosed("the model was closed before this call could run")
