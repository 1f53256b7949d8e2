"""Progress of a download: pure calculators that are handed the time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

__all__ = ["Progress", "ProgressMeter", "RateMeter"]

_logger = logging.getLogger("aioembed.download")

_WINDOW_SECONDS = 5.0
_INTERVAL_SECONDS = 0.05
_FIRST_RATE_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a fetch of one or several files is.

    Attributes:
        fraction: 0 to 1; never goes back; 1 is reached once, when all files are verified and in
            the cache. Stays 0 while the total is unknown.
        received: Bytes that are here, what an earlier attempt left included; never goes back.
        total: Bytes in all, None while a file's size is unknown.
        rate: Bytes per second over the last seconds.
        eta: Seconds left at that rate, None while unknown.
    """

    fraction: float
    received: int
    total: int | None
    rate: float
    eta: float | None


class RateMeter:
    """Bytes per second over a sliding window."""

    def __init__(self, window: float = _WINDOW_SECONDS) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, transferred: int) -> None:
        """Note that `transferred` bytes in all had come over the wire at `now`."""
        self._samples.append((now, transferred))
        while self._samples[0][0] < now - self._window:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Bytes per second; 0 before there is enough to tell."""
        if not self._samples:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        if ended - began < _FIRST_RATE_SECONDS:
            return 0.0
        return max(0.0, (last - first) / (ended - began))


class ProgressMeter:
    """Adds up several files and reports to an observer about 20 times a second.

    An observer that raises is logged once and changes nothing.
    """

    def __init__(
        self,
        sizes: Sequence[int | None],
        observer: Callable[[Progress], None] | None,
        *,
        clock: Callable[[], float],
        interval: float = _INTERVAL_SECONDS,
    ) -> None:
        self._totals = list(sizes)
        self._received = [0] * len(self._totals)
        self._started_at: list[int | None] = [None] * len(self._totals)
        self._observer = observer
        self._clock = clock
        self._interval = interval
        self._rates = RateMeter()
        self._reported_at: float | None = None
        self._unreported = False
        self._high = 0
        self._fraction = 0.0
        self._finished = False
        self._observer_failed = False

    def update(self, index: int, received: int, total: int | None) -> None:
        """Note how far file `index` is; `total` is None where the server does not say."""
        if self._started_at[index] is None:
            self._started_at[index] = received
        self._received[index] = received
        if total is not None:
            self._totals[index] = total
        self._unreported = True
        self._report_if_due()

    async def keep_reporting(self) -> None:
        """Report what came too early and is the last for now, until this is cancelled."""
        while True:
            await anyio.sleep(self._interval)
            if self._unreported:
                self._report_if_due()

    def _report_if_due(self) -> None:
        now = self._clock()
        if self._reported_at is not None and now - self._reported_at < self._interval:
            return
        self._unreported = False
        progress = self._measure(now)
        if progress.total is None or progress.received < progress.total:
            self._reported_at = now
            self._report(progress)

    def finish(self) -> None:
        """Say once that everything is here."""
        if self._finished:
            return
        self._finished = True
        received = max(self._high, sum(self._received))
        self._report(Progress(1.0, received, received, self._rates.rate, 0.0))

    def _measure(self, now: float) -> Progress:
        started = sum(start or 0 for start in self._started_at)
        self._rates.add(now, sum(self._received) - started)
        self._high = max(self._high, sum(self._received))
        total = self._sum_totals()
        rate = self._rates.rate
        if not total:
            return Progress(self._fraction, self._high, total, rate, None)
        if self._high < total:
            self._fraction = max(self._fraction, self._high / total)
        left = max(0, total - sum(self._received))
        return Progress(self._fraction, self._high, total, rate, left / rate if rate else None)

    def _sum_totals(self) -> int | None:
        known = [total for total in self._totals if total is not None]
        return sum(known) if len(known) == len(self._totals) else None

    def _report(self, progress: Progress) -> None:
        if self._observer is None:
            return
        try:
            self._observer(progress)
        except Exception:
            if not self._observer_failed:
                _logger.exception("a progress observer raised; the download goes on")
            self._observer_failed = True
