"""The calculators of progress, with the clock passed in."""

from __future__ import annotations

import anyio
import pytest

from aioembed.download import Progress, ProgressMeter, RateMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_the_last_seconds() -> None:
    meter = RateMeter(window=5.0)
    for second in range(10):
        meter.add(float(second), 1000 * second)
    assert meter.rate == pytest.approx(1000)
    for second in range(10, 20):
        meter.add(float(second), 9000 + 50 * (second - 9))
    assert meter.rate == pytest.approx(50)


def test_the_rate_is_0_until_there_is_enough_data_and_after_a_pause() -> None:
    meter = RateMeter(window=5.0)
    assert meter.rate == 0
    meter.add(0.0, 0)
    meter.add(0.1, 10**6)
    assert meter.rate == 0
    meter.add(100.0, 10**6)
    assert meter.rate == 0


def test_it_reports_at_most_20_times_a_second_and_the_end_once() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter([1000], seen.append, clock=clock)
    for received in range(1001):
        clock.now += 0.001
        meter.update(0, received, 1000)
    meter.finish()
    meter.finish()
    assert 15 <= len(seen) <= 22
    assert [progress.fraction for progress in seen].count(1.0) == 1
    assert seen[-1] == Progress(1.0, 1000, 1000, seen[-1].rate, 0.0)


def test_bytes_that_were_there_before_count_for_the_fraction_and_not_for_the_rate() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter([1000], seen.append, clock=clock)
    meter.update(0, 800, 1000)
    clock.now += 1.0
    meter.update(0, 850, 1000)
    assert seen[0].fraction == pytest.approx(0.8)
    assert seen[1].rate == pytest.approx(50)
    assert seen[1].eta == pytest.approx(3.0)


def test_it_never_goes_back_when_a_download_starts_over() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter([None], seen.append, clock=clock)
    for received in (0, 500, 0, 300, 700):
        clock.now += 1.0
        meter.update(0, received, 1000)
    assert [progress.received for progress in seen] == [0, 500, 500, 500, 700]
    assert [progress.fraction for progress in seen] == [0.0, 0.5, 0.5, 0.5, 0.7]


def test_the_total_is_unknown_until_every_file_has_one() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter([1000, None], seen.append, clock=clock)
    meter.update(0, 400, None)
    clock.now += 1.0
    meter.update(1, 50, 200)
    assert [progress.total for progress in seen] == [None, 1200]
    assert [progress.fraction for progress in seen] == [0.0, 450 / 1200]


def test_without_an_observer_nothing_happens() -> None:
    meter = ProgressMeter([1], None, clock=Clock())
    meter.update(0, 1, 1)
    meter.finish()


@pytest.mark.anyio
async def test_progress_that_came_too_early_is_reported_when_nothing_follows() -> None:
    """A server that falls silent right after its first bytes."""
    told: list[int] = []
    all_told = anyio.Event()

    def watch(progress: Progress) -> None:
        told.append(progress.received)
        if progress.received == 40:
            all_told.set()

    meter = ProgressMeter([100], watch, clock=anyio.current_time, interval=0.01)
    meter.update(0, 10, 100)
    meter.update(0, 40, 100)
    assert told == [10]
    async with anyio.create_task_group() as group:
        group.start_soon(meter.keep_reporting)
        with anyio.fail_after(10):
            await all_told.wait()
        group.cancel_scope.cancel()
    assert told == [10, 40]
