"""Moves a body to the disk: the loop reads while a thread writes and hashes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .bodies import Body
from .limits import FetchLimits

__all__ = ["pump"]

_BLOCK_BYTES = 1 << 20
_BLOCKS = 4
_BLOCK_SECONDS = 0.05

_Filled = tuple[bytearray, int]
_WRITER_GONE = (anyio.BrokenResourceError, anyio.EndOfStream)


async def pump(
    body: Body,
    write: Callable[[Sequence[memoryview]], None],
    report: Callable[[int], None],
    limits: FetchLimits,
) -> None:
    """Hand the body's bytes to `write` in a thread, in blocks of 1 MiB or what 50 ms bring.

    Four blocks are all the memory it takes. What had arrived when the body broke off or the task
    was cancelled is still written.

    Args:
        body: The bytes; it is ended, read to its end or not.
        write: Writes the blocks that wait, which are used again afterwards; called in a worker
            thread, one call at a time.
        report: Told how many bytes have come, each time; what it raises ends the pump.
        limits: `stall` and `min_rate` bound the wait for bytes, not the wait for the disk.

    Raises:
        TimeoutError: The body stalled.
        OSError: `write` failed.
    """
    send, receive = anyio.create_memory_object_stream[_Filled](_BLOCKS)
    give, take = anyio.create_memory_object_stream[bytearray](_BLOCKS)
    failures: list[Exception] = []
    async with anyio.create_task_group() as writer:
        writer.start_soon(_write_all, receive, give, write, failures)
        with send, take, suppress(*_WRITER_GONE):
            try:
                await _Reader(take, send, report, limits).read(body)
            except _WRITER_GONE:
                raise
            except Exception as exc:  # noqa: BLE001  # raised below, when the writer is done
                failures.append(exc)
    if failures:
        raise failures[0]


async def _write_all(
    filled: MemoryObjectReceiveStream[_Filled],
    free: MemoryObjectSendStream[bytearray],
    write: Callable[[Sequence[memoryview]], None],
    failures: list[Exception],
) -> None:
    """Write until the sender closes; a failure closes this end, which stops the sender."""
    with anyio.CancelScope(shield=True), filled, free:
        async for first in filled:
            batch = [first, *_waiting(filled)]
            try:
                await to_thread.run_sync(write, [memoryview(b)[:n] for b, n in batch])
            except OSError as exc:
                failures.append(exc)
                return
            with suppress(anyio.BrokenResourceError):  # the reader needs no more
                for block, _ in batch:
                    free.send_nowait(block)


def _waiting(filled: MemoryObjectReceiveStream[_Filled]) -> Iterator[_Filled]:
    with suppress(anyio.WouldBlock, anyio.EndOfStream):
        while True:
            yield filled.receive_nowait()


class _Reader:
    """Fills blocks and watches that bytes keep coming."""

    def __init__(
        self,
        free: MemoryObjectReceiveStream[bytearray],
        filled: MemoryObjectSendStream[_Filled],
        report: Callable[[int], None],
        limits: FetchLimits,
    ) -> None:
        self._free = free
        self._filled = filled
        self._report = report
        self._limits = limits
        self._made = 0
        self._block = bytearray()
        self._size = 0

    async def read(self, body: Body) -> None:
        try:
            await self._read(body)
        finally:
            try:
                self._hand_over()
            finally:
                await body.end()

    async def _read(self, body: Body) -> None:
        window, goes_on = 0, True
        with anyio.fail_after(self._limits.stall) as stall:
            while goes_on:
                left = stall.deadline - anyio.current_time()
                stall.deadline = math.inf
                self._block = await self._free_block()
                stall.deadline = anyio.current_time() + left
                goes_on = await self._fill(body)
                window += self._size
                self._hand_over()
                if window >= self._limits.stall_bytes:
                    window = 0
                    stall.deadline = anyio.current_time() + self._limits.stall

    async def _free_block(self) -> bytearray:
        try:
            return self._free.receive_nowait()
        except anyio.WouldBlock:
            if self._made == _BLOCKS:
                return await self._free.receive()
        self._made += 1
        return bytearray(_BLOCK_BYTES)

    async def _fill(self, body: Body) -> bool:
        """Fill the block as far as bytes come in time; return whether more may follow."""
        until = anyio.current_time() + _BLOCK_SECONDS
        while self._size < _BLOCK_BYTES:
            count = await body.read_into(memoryview(self._block)[self._size :])
            if not count:
                return False
            self._size += count
            self._report(count)
            if anyio.current_time() >= until:
                break
        return True

    def _hand_over(self) -> None:
        size, self._size = self._size, 0
        if size:
            self._filled.send_nowait((self._block, size))
