"""What waits becomes batches for the workers. It knows nothing of what the items are."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import anyio

from ._tasks import Task, spawn
from .errors import InvalidConfig, ModelClosed

__all__ = ["Batcher"]

_logger = logging.getLogger("aioembed.batcher")

W = TypeVar("W")
T = TypeVar("T")
R = TypeVar("R")


class _Entry(Generic[T, R]):
    """One item, woken when it has its result or its error."""

    __slots__ = ("arrived", "error", "gone", "item", "result", "woken")

    def __init__(self, item: T, arrived: float) -> None:
        self.item = item
        self.arrived = arrived
        self.woken = anyio.Event()
        self.gone = False
        self.result: R | None = None
        self.error: BaseException | None = None


class Batcher(Generic[W, T, R]):
    """Runs items in batches of what waits, one batch at a time on each worker.

    An item that comes while a worker is free starts a background task for it, which ends when
    nothing waits any more. It belongs to one event loop.

    Args:
        run: Takes a worker and the items of one batch, and returns their results in the same
            order. It must run to its end once begun. If it raises for several items, it is called
            again for each of them alone, so that only those at fault fail.
        workers: What runs batches.
        max_batch: Most items in one batch.
        max_wait: Seconds that an item may wait for others to fill its batch; at 0 a batch is
            what waits already when a worker is free.
        clock: Returns seconds.
        on_running: Receives the number of running batches whenever it changes.
        is_lost: Whether an error means that the worker can never run again. It is not used any
            more then; after the last one, what waits and what comes fails with that error.
        on_lost: Receives the error of the last worker that was lost.

    Raises:
        InvalidConfig: `max_batch` is below 1, there are no workers, or `max_wait` is negative.
    """

    def __init__(
        self,
        run: Callable[[W, Sequence[T]], Awaitable[Sequence[R]]],
        *,
        workers: Sequence[W],
        max_batch: int = 1,
        max_wait: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_running: Callable[[int], object] = lambda _running: None,
        is_lost: Callable[[Exception], bool] = lambda _error: False,
        on_lost: Callable[[Exception], object] = lambda _error: None,
    ) -> None:
        if max_batch < 1 or not workers or not max_wait >= 0:
            raise InvalidConfig(
                f"max_batch ({max_batch}) and workers ({len(workers)}) must be at least 1, and "
                f"max_wait ({max_wait}) at least 0 seconds"
            )
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._clock = clock
        self._on_running = on_running
        self._is_lost = is_lost
        self._on_lost = on_lost
        self._free = list(workers)  # what ran last has its weights in the cache, and is last
        self._serving: list[tuple[Task[None], W]] = []
        self._running = 0
        self._waiting: deque[_Entry[T, R]] = deque()
        self._filled: anyio.Event | None = None
        self._refusal: Exception | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """Run one item, in a batch with others that wait at the same time, and return its result.

        Cancelling releases the caller immediately: an item that waits is removed, and a batch
        that runs ends without it.

        Raises:
            ModelClosed: The batcher was closed before the item could run.
            Exception: What `run` raised for the item, or what the last worker was lost by.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        entry: _Entry[T, R] = _Entry(item, self._clock())
        self._waiting.append(entry)
        self._start_worker()
        self._wake_gathering()
        try:
            await entry.woken.wait()
        except BaseException:
            entry.gone = True
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._wake_gathering()
            raise
        if entry.error is not None:
            try:
                raise entry.error
            finally:
                del entry  # the error's traceback refers to this frame
        return entry.result  # type: ignore[return-value]  # R may itself allow None

    async def aclose(self) -> None:
        """Refuse what waits and what comes, and return when nothing runs any more. Idempotent.

        After the last worker was lost, what comes still fails with that error.
        """
        if self._refusal is None:
            self._refuse(ModelClosed("the model was closed before this call could run"))
        for task, _ in list(self._serving):
            await task.wait()

    def _start_worker(self) -> None:
        """Let a free worker serve what waits, if there is one."""
        for task, worker in list(self._serving):
            if task.done:  # cancelled at the loop's end before its first step
                self._end_serving(worker)
        if self._free:
            worker = self._free.pop()
            try:
                task = spawn(partial(self._serve, worker), name="aioembed batcher")
            except ModelClosed as error:
                self._free.append(worker)
                self._fail_waiting(error)
            else:
                self._serving.append((task, worker))

    async def _serve(self, worker: W) -> None:
        """Run batches on one worker while anything waits."""
        is_usable = True
        try:
            while is_usable and self._waiting:
                await self._gather()
                if self._waiting:
                    is_usable = await self._run_batch(worker)
        except BaseException:
            self._fail_waiting(ModelClosed("the event loop is ending"))
            raise
        finally:
            self._end_serving(worker, is_usable=is_usable)

    def _end_serving(self, worker: W, *, is_usable: bool = True) -> None:
        self._serving = [(task, other) for task, other in self._serving if other is not worker]
        if is_usable:
            self._free.append(worker)

    async def _gather(self) -> None:
        """Wait until a batch is full, or its first item has waited long enough."""
        while self._waiting and not self._is_filled():
            left = self._waiting[0].arrived + self._max_wait - self._clock()
            if left <= 0:
                return
            if self._filled is None:
                self._filled = anyio.Event()
            with anyio.move_on_after(left):
                await self._filled.wait()

    def _is_filled(self) -> bool:
        return self._refusal is not None or len(self._waiting) >= self._max_batch

    def _wake_gathering(self) -> None:
        if self._filled is not None and (self._is_filled() or not self._waiting):
            self._filled.set()
            self._filled = None

    async def _run_batch(self, worker: W) -> bool:
        """Run one batch, and return whether the worker can run another."""
        sharing = len(self._serving) - self._running  # workers that are about to take a batch
        count = min(self._max_batch, -(-len(self._waiting) // sharing))
        batch = [self._waiting.popleft() for _ in range(count)]
        self._count_running(1)
        try:
            return await self._compute(worker, batch)
        except BaseException:
            for entry in batch:
                entry.error = entry.error or ModelClosed("the event loop is ending")
            raise
        finally:
            self._count_running(-1)
            for entry in batch:
                entry.woken.set()

    async def _compute(self, worker: W, batch: Sequence[_Entry[T, R]]) -> bool:
        try:
            results = await self._run(worker, [entry.item for entry in batch])
            for entry, result in zip(batch, results, strict=True):
                entry.result = result
        except Exception as error:
            if self._is_lost(error):
                self._lose(error, batch)
                return False
            if len(batch) == 1:
                batch[0].error = error
                return True
            _logger.debug("a batch of %d failed; its items run alone", len(batch), exc_info=error)
        else:
            return True
        wanted = [entry for entry in batch if not entry.gone]
        for place, entry in enumerate(wanted):
            if not await self._compute(worker, [entry]):
                for other in wanted[place + 1 :]:
                    other.error = entry.error
                return False
        return True

    def _lose(self, error: Exception, batch: Sequence[_Entry[T, R]]) -> None:
        for entry in batch:
            entry.error = error
        if not self._free and len(self._serving) == 1:
            self._refuse(error)
            self._on_lost(error)

    def _refuse(self, error: Exception) -> None:
        self._refusal = error
        self._fail_waiting(error)
        self._wake_gathering()

    def _fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            entry.error = error
            entry.woken.set()

    def _count_running(self, change: int) -> None:
        self._running += change
        self._on_running(self._running)
