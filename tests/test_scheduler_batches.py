"""Scheduler: waiting for others, failing alone, leaving out what was cancelled."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import anyio
import pytest

from aioembed.errors import InvalidConfig, ModelClosed
from aioembed.scheduler import Scheduler

pytestmark = pytest.mark.anyio


class Doubler:
    """Doubles numbers; refuses batches with a negative one; can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(30)
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {list(items)}")
        return [2 * item for item in items]

    async def wait_entered(self) -> None:
        await anyio.to_thread.run_sync(self.entered.acquire)


class FakeClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_bad_item_fails_alone_and_the_rest_of_its_batch_succeeds() -> None:
    doubler = Doubler()
    doubler.gate.clear()
    scheduler = Scheduler(doubler.run, max_batch=8)
    outcomes: dict[int, object] = {}

    async def call(item: int) -> None:
        try:
            outcomes[item] = await scheduler.submit(item)
        except ValueError as error:
            outcomes[item] = str(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 0)
        await doubler.wait_entered()
        for item in (1, -2, 3, -4):
            tasks.start_soon(call, item)
        await anyio.wait_all_tasks_blocked()
        doubler.gate.set()
    assert outcomes == {0: 0, 1: 2, -2: "negative: [-2]", 3: 6, -4: "negative: [-4]"}


async def test_a_run_that_returns_too_few_results_is_an_error_and_no_mix_up() -> None:
    scheduler: Scheduler[int, int] = Scheduler(lambda _items: [])
    with pytest.raises(ValueError, match=r"values to unpack|zip"):
        await scheduler.submit(1)


async def test_max_wait_holds_a_batch_back_until_it_is_full() -> None:
    doubler = Doubler()
    scheduler = Scheduler(doubler.run, max_batch=3, max_wait=1e6, clock=FakeClock())
    results: list[int] = []

    async def call(item: int) -> None:
        results.append(await scheduler.submit(item))

    async with anyio.create_task_group() as tasks:
        for item in (1, 2):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
        assert doubler.batches == []
        tasks.start_soon(call, 3)
    assert doubler.batches == [[1, 2, 3]]
    assert sorted(results) == [2, 4, 6]


async def test_max_wait_counts_from_the_first_items_arrival() -> None:
    """What has waited that long behind another batch is not held back again."""
    doubler = Doubler()
    doubler.gate.clear()
    clock = FakeClock()
    scheduler = Scheduler(doubler.run, max_batch=2, max_wait=1e6, clock=clock)
    async with anyio.create_task_group() as tasks:
        for item in (1, 2, 3):
            tasks.start_soon(scheduler.submit, item)
            await anyio.wait_all_tasks_blocked()
        await doubler.wait_entered()
        clock.now += 1e6
        doubler.gate.set()
    assert doubler.batches == [[1, 2], [3]]


async def test_a_batch_runs_when_max_wait_is_over() -> None:
    doubler = Doubler()
    scheduler = Scheduler(doubler.run, max_batch=2, max_wait=0.001)
    assert await scheduler.submit(4) == 8


async def test_a_leader_cancelled_while_it_waits_for_others_hands_over() -> None:
    doubler = Doubler()
    scheduler = Scheduler(doubler.run, max_batch=3, max_wait=1e6, clock=FakeClock())
    results: list[int] = []

    async def call(item: int) -> None:
        results.append(await scheduler.submit(item))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(scheduler.submit, 1)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(call, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        for item in (3, 4):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
    assert doubler.batches == [[2, 3, 4]]
    assert sorted(results) == [4, 6, 8]


async def test_closing_refuses_what_waits_for_its_batch_to_fill() -> None:
    doubler = Doubler()
    scheduler = Scheduler(doubler.run, max_batch=2, max_wait=1e6, clock=FakeClock())

    async def call() -> None:
        with pytest.raises(ModelClosed):
            await scheduler.submit(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        await scheduler.aclose()
    assert doubler.batches == []


async def test_what_is_cancelled_before_its_batch_begins_is_not_computed() -> None:
    """The batch is taken, its call waits for a thread, and a follower gives up."""
    doubler = Doubler()
    doubler.gate.clear()
    scheduler = Scheduler(doubler.run, max_batch=4)
    follower = anyio.CancelScope()
    taken = anyio.Event()
    scheduler._on_running = lambda running: taken.set() if running and doubler.batches else None

    async def give_up() -> None:
        with follower:
            await scheduler.submit(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.submit, 0)
        await doubler.wait_entered()
        tasks.start_soon(scheduler.submit, 1)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(give_up)
        await anyio.wait_all_tasks_blocked()
        scheduler._limiter.total_tokens = 2
        busy = object()
        scheduler._limiter.acquire_on_behalf_of_nowait(busy)
        scheduler._limiter.total_tokens = 1
        doubler.gate.set()
        await taken.wait()
        follower.cancel()
        await anyio.wait_all_tasks_blocked()
        scheduler._limiter.release_on_behalf_of(busy)
    assert follower.cancelled_caught
    assert doubler.batches == [[0], [1]]


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"workers": 0}, {"max_wait": -1.0}, {"max_wait": float("nan")}]
)
async def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        Scheduler(Doubler().run, **options)  # type: ignore[arg-type]
