"""Moves a body to the disk: the loop reads while a thread writes and hashes."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .limits import FetchLimits
from .transport import unwind

__all__ = ["pump"]

_BATCH_BYTES = 1 << 20
_BATCH_SECONDS = 0.05

Batch = list[bytes]


async def pump(
    body: AsyncIterator[bytes],
    write: Callable[[Batch], None],
    report: Callable[[int], None],
    limits: FetchLimits,
) -> None:
    """Hand the body's bytes to `write` in a thread, in batches of about 1 MiB.

    At most three batches are in memory. What had arrived when the body broke off or the task
    was cancelled is still written.

    Args:
        body: The bytes; it is ended, read to its end or not.
        write: Writes a batch; called in a worker thread, one call at a time.
        report: Told the size of each batch as it is handed over; what it raises ends the pump.
        limits: `stall` and `min_rate` bound the wait for bytes, not the wait for the disk.

    Raises:
        TimeoutError: The body stalled.
        OSError: `write` failed.
    """
    send, receive = anyio.create_memory_object_stream[Batch](1)
    failures: list[Exception] = []
    async with anyio.create_task_group() as writer:
        writer.start_soon(_write_all, receive, write, failures)
        with send, suppress(anyio.BrokenResourceError):
            try:
                await _Reader(send, report, limits).read(body)
            except anyio.BrokenResourceError:
                raise
            except Exception as exc:  # noqa: BLE001  # raised below, when the writer is done
                failures.append(exc)
    if failures:
        raise failures[0]


async def _write_all(
    batches: MemoryObjectReceiveStream[Batch],
    write: Callable[[Batch], None],
    failures: list[Exception],
) -> None:
    """Write until the sender closes; a failure closes this end, which stops the sender."""
    with anyio.CancelScope(shield=True), batches:
        async for batch in batches:
            try:
                await to_thread.run_sync(write, batch)
            except OSError as exc:
                failures.append(exc)
                return


class _Reader:
    """Gathers chunks and watches that they keep coming."""

    def __init__(
        self,
        send: MemoryObjectSendStream[Batch],
        report: Callable[[int], None],
        limits: FetchLimits,
    ) -> None:
        self._send = send
        self._report = report
        self._limits = limits
        self._batch: Batch = []
        self._size = 0

    async def read(self, body: AsyncIterator[bytes]) -> None:
        try:
            await self._read(body)
        finally:
            await unwind(body)
            with anyio.CancelScope(shield=True):
                await self._hand_over()

    async def _read(self, body: AsyncIterator[bytes]) -> None:
        handed_at = anyio.current_time()
        window = 0
        with anyio.fail_after(self._limits.stall) as stall:
            async for chunk in body:
                self._batch.append(chunk)
                self._size += len(chunk)
                window += len(chunk)
                now = anyio.current_time()
                if self._size < _BATCH_BYTES and now - handed_at < _BATCH_SECONDS:
                    continue
                left = stall.deadline - now
                stall.deadline = math.inf
                await self._hand_over()
                handed_at = anyio.current_time()
                if window >= self._limits.stall_bytes:
                    window, left = 0, self._limits.stall
                stall.deadline = handed_at + left

    async def _hand_over(self) -> None:
        batch, size = self._batch, self._size
        if not batch:
            return
        self._batch, self._size = [], 0
        self._report(size)
        with anyio.CancelScope(shield=True):  # a batch that was reported must reach the disk
            await self._send.send(batch)
