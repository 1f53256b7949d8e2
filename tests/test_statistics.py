"""The calculators behind `handle.statistics()`, with a clock that the test sets."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioembed.statistics import CallRecorder, Rate, Stopwatch


class FakeClock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_queue_is_the_time_that_no_stage_accounts_for() -> None:
    clock = FakeClock()
    stopwatch = Stopwatch(clock)
    clock.now += 2
    with stopwatch.measure("decode"):
        clock.now += 3
    clock.now += 1
    stopwatch.add("inference", 0.5)
    timing = stopwatch.stop("succeeded", None)
    assert timing.seconds == 6
    assert dict(timing.stages) == {"decode": 3, "inference": 0.5, "queue": 2.5}


def test_a_stage_that_raises_is_counted_all_the_same() -> None:
    clock = FakeClock()
    stopwatch = Stopwatch(clock)

    def fail() -> None:
        clock.now += 4
        raise OSError

    with pytest.raises(OSError), stopwatch.measure("fetch"):  # noqa: PT011  # any will do
        fail()
    assert stopwatch.stop("failed", None).stages["fetch"] == 4


def test_counts_stages_and_batches_add_up() -> None:
    clock = FakeClock()
    recorder = CallRecorder(clock)
    first, second, third = (recorder.submitted() for _ in range(3))
    for stopwatch in (first, second):
        stopwatch.batch_size = 2
        stopwatch.add("inference", 0.25)
    first.leads = True
    clock.now += 1
    recorder.ended(first, "succeeded")
    recorder.ended(second, "cancelled")
    recorder.ended(third, "failed", OSError())
    recorder.refused()
    figures = recorder.snapshot(pending=7)
    assert (figures.submitted, figures.succeeded, figures.failed) == (3, 1, 1)
    assert (figures.cancelled, figures.timed_out, figures.refused) == (1, 0, 1)
    assert figures.pending == 7
    assert dict(figures.batch_sizes) == {2: 1}
    assert figures.stages["inference"].calls == 2
    assert figures.stages["inference"].mean == 0.25
    assert figures.stages["queue"].longest == 1
    assert figures.stages["fetch"].mean == 0


def test_a_snapshot_does_not_change_any_more() -> None:
    recorder = CallRecorder(FakeClock())
    before = recorder.snapshot(pending=0)
    recorder.ended(recorder.submitted(), "succeeded")
    assert before.submitted == before.succeeded == before.stages["queue"].calls == 0
    with pytest.raises(TypeError):
        before.batch_sizes[1] = 2  # type: ignore[index]


def test_a_steady_rate_is_reported_as_it_is_and_fades_when_nothing_comes() -> None:
    rate = Rate(window=10)
    assert rate.per_second(0) == 0
    for event in range(1000):
        rate.add(event / 50)
    assert rate.per_second(20) == pytest.approx(50, rel=0.06)
    assert rate.per_second(25) == pytest.approx(25, rel=0.1)
    assert rate.per_second(31) == 0


@given(st.lists(st.floats(0, 5), max_size=300))
def test_a_rate_keeps_few_numbers_and_never_goes_below_zero(gaps: list[float]) -> None:
    rate, now = Rate(window=10), 0.0
    for gap in gaps:
        now += gap
        rate.add(now)
        assert rate.per_second(now) > 0
        assert len(pickle.dumps(rate)) < 1000
