"""The calls of one handle: how many wait or run at the same time, and what each of them took."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from .errors import AioembedError, ForwardTimeout, InternalError, ModelBusy
from .statistics import CallRecorder, CallTiming, Outcome, Statistics, Stopwatch

__all__ = ["Calls", "OnCall"]

_logger = logging.getLogger("aioembed.handle")

OnCall = Callable[[CallTiming], object]


class Calls:
    """Bounds, counts and times calls. It belongs to one event loop's thread.

    Args:
        most: Calls that may wait or run at the same time.
        on_call: Receives the timing of each call that has ended. If it raises, that is logged.
        on_pending: Receives the number of pending calls whenever it has changed.

    Attributes:
        most: As given.
        pending: Calls that wait or run now.
    """

    def __init__(
        self, most: int, *, on_call: OnCall | None, on_pending: Callable[[int], object]
    ) -> None:
        self.most = most
        self.pending: int = 0
        self._on_call = on_call
        self._on_pending = on_pending
        self._recorder = CallRecorder()
        self._waiting: deque[anyio.Event] = deque()

    def check_room(self) -> None:
        """Refuse a call if there is no room for one.

        Raises:
            ModelBusy: As many calls wait or run as may.
        """
        if self.pending >= self.most:
            self._recorder.refused()
            raise ModelBusy(
                f"{self.pending} calls wait or run and {self.most} is the most: try again later",
                pending=self.pending,
            )

    async def wait_for_room(self) -> None:
        """Wait until one more call may begin; the caller begins it without another await."""
        while self.pending >= self.most:
            room = anyio.Event()
            self._waiting.append(room)
            try:
                await room.wait()
            except BaseException:
                if room in self._waiting:
                    self._waiting.remove(room)
                else:  # pass on the room that was offered
                    self._offer_room()
                raise

    @contextmanager
    def counted(self) -> Iterator[Stopwatch]:
        """Count and time a call, and turn an unexpected error into an `InternalError`."""
        stopwatch = self._recorder.submitted()
        self._change(1)
        outcome: Outcome = "cancelled"
        error: BaseException | None = None
        try:
            yield stopwatch
            outcome = "succeeded"
        except (AioembedError, MemoryError, Warning) as exc:
            outcome = "timed_out" if isinstance(exc, ForwardTimeout) else "failed"
            error = exc
            raise
        except Exception as exc:
            outcome = "failed"
            error = InternalError.of(exc)
            _logger.exception("a call failed unexpectedly")
            raise error from exc
        finally:
            self._change(-1)
            self._offer_room()
            self._report(self._recorder.ended(stopwatch, outcome, error))
            error = None  # its traceback refers to this frame

    def statistics(self) -> Statistics:
        """Return the figures of all calls so far."""
        return self._recorder.snapshot(pending=self.pending)

    def _change(self, change: int) -> None:
        self.pending += change
        self._on_pending(self.pending)

    def _offer_room(self) -> None:
        if self._waiting and self.pending < self.most:
            self._waiting.popleft().set()

    def _report(self, timing: CallTiming) -> None:
        if self._on_call is not None:
            try:
                self._on_call(timing)
            except Exception:
                _logger.exception("on_call raised; the call that it reports is not affected")
