"""The calls of one handle: admitted or refused, given a deadline, timed and counted."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from ..errors import ForwardTimeout, InvalidConfig, ModelBusy
from ..statistics import CallRecorder, CallTiming, Outcome, Statistics, Stopwatch

__all__ = ["Calls", "OnBusy", "OnCall"]

_logger = logging.getLogger("aioembed.handle")

InputT = TypeVar("InputT")
Embedding = NDArray[np.float32]
OnBusy = Literal["wait", "raise"]
OnCall = Callable[[CallTiming], object]


class Calls(Generic[InputT]):
    """Admits, times and counts calls.

    Args:
        embed: Embeds one item, and tells the stopwatch what it does.
        max_pending: Most calls that may wait or run.
        on_busy: `raise` allows one at a time.
        on_pending: Told how many wait or run, whenever that changes.
        on_call: Told of every call that has ended.

    Raises:
        InvalidConfig: `max_pending` is below 1, or `on_busy` is something else.
    """

    def __init__(
        self,
        embed: Callable[[InputT, Stopwatch], Awaitable[Embedding]],
        *,
        max_pending: int,
        on_busy: OnBusy,
        on_pending: Callable[[int], object],
        on_call: OnCall | None,
    ) -> None:
        if max_pending < 1:
            raise InvalidConfig(f"max_pending must be at least 1, not {max_pending}")
        if on_busy not in {"wait", "raise"}:
            raise InvalidConfig(f"on_busy is 'wait' or 'raise', not {on_busy!r}")
        self._embed = embed
        self._limit = 1 if on_busy == "raise" else max_pending
        self._on_pending = on_pending
        self._on_call = on_call
        self._recorder = CallRecorder()
        self._pending = 0
        self._wanting: deque[anyio.Event] = deque()

    @property
    def limit(self) -> int:
        """Most calls that may wait or run."""
        return self._limit

    def statistics(self) -> Statistics:
        """The figures as they are now."""
        return self._recorder.snapshot(pending=self._pending)

    async def run(self, item: InputT, timeout: float | None = None) -> Embedding:
        """Embed one item, or refuse it.

        Raises:
            ModelBusy: Too many calls wait or run.
            ForwardTimeout: It took longer than `timeout` seconds.
            InvalidConfig: `timeout` is no positive number.
        """
        _check_timeout(timeout)
        if self._pending >= self._limit:
            self._recorder.refused()
            raise ModelBusy(
                f"{self._pending} calls wait or run and {self._limit} is the most: try again later",
                pending=self._pending,
            )
        with self._counted() as stopwatch:
            if timeout is None:
                return await self._embed(item, stopwatch)
            with anyio.move_on_after(timeout):
                return await self._embed(item, stopwatch)
            raise ForwardTimeout(
                f"no embedding within {timeout:g} s: allow more, or lower max_pending so that "
                "calls are refused earlier"
            )

    async def run_when_admitted(self, item: InputT) -> Embedding:
        """Embed one item as soon as there is room for it."""
        while self._pending >= self._limit:
            room = anyio.Event()
            self._wanting.append(room)
            try:
                await room.wait()
            except BaseException:
                self._forget(room)
                raise
        with self._counted() as stopwatch:
            return await self._embed(item, stopwatch)

    @contextmanager
    def _counted(self) -> Iterator[Stopwatch]:
        stopwatch = self._recorder.submitted()
        self._count_pending(1)
        outcome: Outcome = "cancelled"
        error: BaseException | None = None
        try:
            yield stopwatch
            outcome = "succeeded"
        except Exception as exc:
            outcome = "timed_out" if isinstance(exc, ForwardTimeout) else "failed"
            error = exc
            raise
        finally:
            self._count_pending(-1)
            self._offer_room()
            self._tell(self._recorder.ended(stopwatch, outcome, error))
            error = None  # its traceback refers to this frame

    def _tell(self, timing: CallTiming) -> None:
        if self._on_call is not None:
            try:
                self._on_call(timing)
            except Exception:
                _logger.exception("on_call raised; the call it was told of is not affected")

    def _forget(self, room: anyio.Event) -> None:
        """Pass on the room that a cancelled call was offered."""
        if room in self._wanting:
            self._wanting.remove(room)
        else:
            self._offer_room()

    def _offer_room(self) -> None:
        if self._wanting and self._pending < self._limit:
            self._wanting.popleft().set()

    def _count_pending(self, change: int) -> None:
        self._pending += change
        self._on_pending(self._pending)


def _check_timeout(timeout: float | None) -> None:
    if timeout is None:
        return
    number: object = timeout
    if not isinstance(number, int | float) or isinstance(number, bool) or not number > 0:
        raise InvalidConfig(f"timeout must be a positive number of seconds, not {timeout!r}")
