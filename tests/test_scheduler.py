"""The scheduler: batches of what waits, one at a time, every caller gets its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence

import anyio
import pytest

from aioembed.errors import ModelClosed
from aioembed.scheduler import Scheduler

pytestmark = pytest.mark.anyio


class Machine:
    """Doubles numbers in a worker thread, and can be held up there."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.inside = 0
        self.most_inside = 0
        self.lock = threading.Lock()

    def run(self, items: Sequence[int]) -> list[int]:
        with self.lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(30)
        with self.lock:
            self.inside -= 1
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {list(items)}")
        return [2 * item for item in items]

    async def wait_entered(self) -> None:
        await anyio.to_thread.run_sync(self.entered.acquire)


async def test_one_item_runs_at_once_and_alone() -> None:
    machine = Machine()
    scheduler = Scheduler(machine.run, max_batch=8)
    assert await scheduler.submit(21) == 42
    assert machine.batches == [[21]]


async def test_what_waits_meanwhile_forms_the_next_batches_in_order() -> None:
    machine = Machine()
    machine.gate.clear()
    scheduler = Scheduler(machine.run, max_batch=3)
    results: dict[int, int] = {}

    async def call(item: int) -> None:
        results[item] = await scheduler.submit(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 0)
        await machine.wait_entered()
        for item in range(1, 8):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
        assert scheduler.waiting == 7
        machine.gate.set()
    assert results == {item: 2 * item for item in range(8)}
    assert machine.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_no_more_batches_run_at_once_than_there_are_workers(workers: int) -> None:
    machine = Machine()
    machine.gate.clear()
    running: list[int] = []
    scheduler = Scheduler(machine.run, workers=workers, on_running=running.append)
    async with anyio.create_task_group() as tasks:
        for item in range(12):
            tasks.start_soon(scheduler.submit, item)
        for _ in range(workers):
            await machine.wait_entered()
        machine.gate.set()
    assert machine.most_inside == workers
    assert max(running) == workers
    assert running[-1] == 0


async def test_an_error_reaches_its_own_batch_and_nobody_else() -> None:
    machine = Machine()
    scheduler = Scheduler(machine.run)
    outcomes: dict[int, object] = {}

    async def call(item: int) -> None:
        try:
            outcomes[item] = await scheduler.submit(item)
        except ValueError as error:
            outcomes[item] = str(error)

    async with anyio.create_task_group() as tasks:
        for item in (1, -2, 3):
            tasks.start_soon(call, item)
    assert outcomes == {1: 2, -2: "negative: [-2]", 3: 6}


async def test_a_cancelled_waiter_never_runs() -> None:
    machine = Machine()
    machine.gate.clear()
    scheduler = Scheduler(machine.run)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.submit, 1)
        await machine.wait_entered()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as doomed:
                doomed.start_soon(scheduler.submit, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scheduler.waiting == 0
        machine.gate.set()
    assert machine.batches == [[1]]
    assert await scheduler.submit(3) == 6


async def test_closing_waits_for_the_batch_that_runs_and_refuses_the_rest() -> None:
    machine = Machine()
    machine.gate.clear()
    scheduler = Scheduler(machine.run)
    outcomes: list[object] = []

    async def call(item: int) -> None:
        try:
            outcomes.append(await scheduler.submit(item))
        except ModelClosed:
            outcomes.append("closed")

    async def close() -> None:
        await scheduler.aclose()
        outcomes.append("done")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 1)
        await machine.wait_entered()
        tasks.start_soon(call, 2)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert outcomes == ["closed"]
        machine.gate.set()
    assert sorted(map(str, outcomes)) == ["2", "closed", "done"]
    with pytest.raises(ModelClosed):
        await scheduler.submit(4)


async def test_a_cancelled_leader_waits_for_its_batch_and_the_others_get_theirs() -> None:
    machine = Machine()
    machine.gate.clear()
    scheduler = Scheduler(machine.run, max_batch=4)
    results: list[int] = []
    scope = anyio.CancelScope()

    async def lead() -> None:
        with scope:
            await scheduler.submit(1)

    async def follow(item: int) -> None:
        results.append(await scheduler.submit(item))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lead)
        await machine.wait_entered()
        tasks.start_soon(follow, 2)
        tasks.start_soon(follow, 3)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert machine.most_inside == 1
        machine.gate.set()
    assert sorted(results) == [4, 6]
    assert machine.most_inside == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_task_cancel_cannot_tear_a_running_batch_from_its_callers() -> None:
    """`Task.cancel()` ignores anyio's shields; the batch must be waited for all the same."""
    machine = Machine()
    scheduler = Scheduler(machine.run, max_batch=4)
    first = asyncio.create_task(scheduler.submit(0))
    machine.gate.clear()
    await machine.wait_entered()
    tasks = [asyncio.create_task(scheduler.submit(item)) for item in (1, 2, 3)]
    await anyio.wait_all_tasks_blocked()
    machine.gate.set()
    assert await first == 0
    machine.gate.clear()
    await machine.wait_entered()
    for _ in range(3):
        tasks[0].cancel()
        await anyio.wait_all_tasks_blocked()
    assert not tasks[0].done()
    machine.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert await asyncio.gather(*tasks[1:]) == [4, 6]
    assert machine.batches == [[0], [1, 2, 3]]


@pytest.mark.parametrize("seed", range(20))
async def test_random_cancellations_leave_every_other_call_right(seed: int) -> None:
    machine = Machine()
    dice = random.Random(seed)
    scheduler = Scheduler(machine.run, max_batch=dice.choice([1, 3]), workers=dice.choice([1, 2]))
    wanted: set[int] = set()
    got: dict[int, int] = {}

    async def call(item: int, doomed: bool) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                if doomed:
                    tasks.start_soon(cancel_soon, scope)
                got[item] = await scheduler.submit(item)

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        for _ in range(dice.randrange(20)):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        for item in range(200):
            doomed = dice.random() < 1 / 3
            if not doomed:
                wanted.add(item)
            tasks.start_soon(call, item, doomed)
    assert wanted <= set(got)
    assert all(result == 2 * item for item, result in got.items())
    assert scheduler.waiting == 0
    await scheduler.aclose()


async def test_a_leader_and_its_follower_cancelled_together_block_nobody() -> None:
    """Both are cancelled when the batch is taken but its call has not begun."""
    machine = Machine()
    machine.gate.clear()
    scope = anyio.CancelScope()

    def cancel_second_batch(running: int) -> None:
        if running and machine.batches:
            scope.cancel()

    scheduler = Scheduler(machine.run, max_batch=2, on_running=cancel_second_batch)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.submit, 0)
        await machine.wait_entered()
        with scope:
            async with anyio.create_task_group() as pair:
                pair.start_soon(scheduler.submit, 1)
                pair.start_soon(scheduler.submit, 2)
                await anyio.wait_all_tasks_blocked()
                machine.gate.set()
    assert scope.cancelled_caught
    assert machine.batches == [[0]]
    with anyio.fail_after(10):
        assert await scheduler.submit(3) == 6
        await scheduler.aclose()
