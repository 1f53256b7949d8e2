"""What a handle's calls cost: counts, seconds per stage, batch sizes, throughput."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

__all__ = [
    "CallRecorder",
    "CallTiming",
    "Outcome",
    "Rate",
    "Stage",
    "StageStatistics",
    "Statistics",
    "Stopwatch",
]

Stage = Literal["fetch", "decode", "preprocess", "queue", "inference"]
"""What a call passes through. `decode` includes reading a file; a text's tokenising is its
`preprocess`; `queue` is all the time in which a loaded model did nothing for the call."""

Outcome = Literal["succeeded", "failed", "cancelled", "timed_out"]
"""How a call ended. One that was refused with `ModelBusy` never began."""

_STAGES: tuple[Stage, ...] = get_args(Stage)
_WINDOW = 10.0


@dataclass(frozen=True, slots=True)
class CallTiming:
    """One call of `forward`, when it has ended.

    Attributes:
        outcome: How it ended.
        seconds: From the call to its end, without the wait for a load.
        stages: Seconds in each stage that the call reached.
        batch_size: Items that were run together with it, itself included; 0 where it never ran.
        error: What it raised, None if it succeeded.
    """

    outcome: Outcome
    seconds: float
    stages: Mapping[Stage, float]
    batch_size: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """One stage over all calls that reached it.

    Attributes:
        calls: How many did.
        total: Seconds of all of them together.
        longest: Seconds of the longest.
    """

    calls: int = 0
    total: float = 0.0
    longest: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds per call, 0 before the first."""
        return self.total / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a handle has done since it was made, at one moment.

    Attributes:
        submitted: Calls that were accepted.
        succeeded: Calls that returned an embedding.
        failed: Calls that raised an error.
        cancelled: Calls that were cancelled from outside.
        timed_out: Calls whose `timeout` passed.
        refused: Calls that `ModelBusy` turned away; they are not among the submitted ones.
        pending: Calls that wait or run now.
        batch_sizes: How many batches there were of each size.
        stages: Seconds by stage.
        throughput: Embeddings per second over the last 10 seconds.
    """

    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    timed_out: int
    refused: int
    pending: int
    batch_sizes: Mapping[int, int]
    stages: Mapping[Stage, StageStatistics]
    throughput: float


class Stopwatch:
    """Adds up the seconds that one call spends in each stage, in whichever thread it is.

    Attributes:
        seconds: By stage.
        batch_size: Items of the batch that the call ran in.
        leads: Whether it counts for its batch.

    Args:
        clock: Returns seconds.
    """

    __slots__ = ("_began", "_clock", "batch_size", "leads", "seconds")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self.seconds: dict[Stage, float] = {}
        self.batch_size: int = 0
        self.leads: bool = False

    def restart(self) -> None:
        """Let the call begin now."""
        self._began = self._clock()

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds for a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Count the body's time for a stage."""
        began = self._clock()
        try:
            yield
        finally:
            self.add(stage, self._clock() - began)

    def stop(self, outcome: Outcome, error: BaseException | None) -> CallTiming:
        """Return the call's timing; what no stage accounts for was spent in the queue."""
        total = self._clock() - self._began
        queued = max(0.0, total - sum(self.seconds.values()))
        stages = MappingProxyType({**self.seconds, "queue": queued})
        return CallTiming(outcome, total, stages, self.batch_size, error)


class Rate:
    """Events per second over the last seconds.

    Args:
        window: How many seconds count.
    """

    def __init__(self, window: float = _WINDOW) -> None:
        self._window = window
        self._first: float | None = None
        self._slots: deque[tuple[float, int]] = deque()

    def add(self, now: float) -> None:
        """Count one event."""
        if self._first is None:
            self._first = now
        if self._slots and now - self._slots[-1][0] < self._window / 20:
            start, count = self._slots[-1]
            self._slots[-1] = (start, count + 1)
        else:
            self._slots.append((now, 1))
            self._forget(now)

    def per_second(self, now: float) -> float:
        """Return the rate, 0 where nothing happened within the window."""
        self._forget(now)
        if self._first is None or not self._slots:
            return 0.0
        span = min(self._window, now - self._first)
        return sum(count for _, count in self._slots) / max(span, self._window / 20)

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0][0] > self._window:
            self._slots.popleft()


class CallRecorder:
    """Keeps the figures of all calls of one handle. It belongs to one event loop's thread.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._submitted = self._refused = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._batch_sizes: Counter[int] = Counter()
        self._stages = dict.fromkeys(_STAGES, StageStatistics())
        self._rate = Rate()

    def submitted(self) -> Stopwatch:
        """Count a call that was accepted, and return what times it."""
        self._submitted += 1
        return Stopwatch(self._clock)

    def refused(self) -> None:
        """Count a call that was turned away."""
        self._refused += 1

    def ended(
        self, stopwatch: Stopwatch, outcome: Outcome, error: BaseException | None = None
    ) -> CallTiming:
        """Count a call that has ended, and return its timing."""
        timing = stopwatch.stop(outcome, error)
        self._outcomes[outcome] += 1
        if outcome == "succeeded":
            self._rate.add(self._clock())
        if stopwatch.leads:
            self._batch_sizes[stopwatch.batch_size] += 1
        for stage, seconds in timing.stages.items():
            before = self._stages[stage]
            self._stages[stage] = StageStatistics(
                before.calls + 1, before.total + seconds, max(before.longest, seconds)
            )
        return timing

    def snapshot(self, *, pending: int) -> Statistics:
        """Return the figures as they are now.

        Args:
            pending: Calls that wait or run.
        """
        return Statistics(
            submitted=self._submitted,
            succeeded=self._outcomes["succeeded"],
            failed=self._outcomes["failed"],
            cancelled=self._outcomes["cancelled"],
            timed_out=self._outcomes["timed_out"],
            refused=self._refused,
            pending=pending,
            batch_sizes=MappingProxyType(dict(sorted(self._batch_sizes.items()))),
            stages=MappingProxyType(self._stages.copy()),
            throughput=self._rate.per_second(self._clock()),
        )
