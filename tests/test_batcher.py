"""The batcher: batches of what waits, one at a time on a worker, every caller gets its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioembed._batcher import Batcher
from aioembed._tasks import BlockingCall, spawn
from aioembed.errors import InvalidConfig, ModelClosed

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

    def batcher(self, *, workers: int = 1, **options: Any) -> Batcher[int, int, int]:
        async def run(_worker: int, items: Sequence[int]) -> list[int]:
            return await BlockingCall(lambda: self.run(items)).run()

        return Batcher(run, workers=range(workers), **options)


class FakeClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_one_item_runs_immediately_and_alone() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=8)
    assert await batcher.submit(21) == 42
    assert machine.batches == [[21]]


async def test_waiting_items_form_the_next_batches_in_order() -> None:
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher(max_batch=3)
    results: dict[int, int] = {}

    async def call(item: int) -> None:
        results[item] = await batcher.submit(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 0)
        await machine.wait_entered()
        for item in range(1, 8):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
        assert batcher.waiting == 7
        machine.gate.set()
    assert results == {item: 2 * item for item in range(8)}
    assert machine.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_no_more_batches_run_concurrently_than_there_are_workers(workers: int) -> None:
    machine = Machine()
    machine.gate.clear()
    running: list[int] = []
    batcher = machine.batcher(workers=workers, on_running=running.append)
    async with anyio.create_task_group() as tasks:
        for item in range(12):
            tasks.start_soon(batcher.submit, item)
        for _ in range(workers):
            await machine.wait_entered()
        machine.gate.set()
    assert machine.most_inside == workers
    assert max(running) == workers
    assert running[-1] == 0


async def test_an_error_reaches_the_callers_of_its_batch_only() -> None:
    machine = Machine()
    batcher = machine.batcher()
    outcomes: dict[int, object] = {}

    async def call(item: int) -> None:
        try:
            outcomes[item] = await batcher.submit(item)
        except ValueError as error:
            outcomes[item] = str(error)

    async with anyio.create_task_group() as tasks:
        for item in (1, -2, 3):
            tasks.start_soon(call, item)
    assert outcomes == {1: 2, -2: "negative: [-2]", 3: 6}


async def test_a_cancelled_waiter_never_runs() -> None:
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.submit, 1)
        await machine.wait_entered()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(batcher.submit, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert batcher.waiting == 0
        machine.gate.set()
    assert machine.batches == [[1]]
    assert await batcher.submit(3) == 6


async def test_closing_waits_for_the_batch_that_runs_and_refuses_the_rest() -> None:
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher()
    outcomes: list[object] = []

    async def call(item: int) -> None:
        try:
            outcomes.append(await batcher.submit(item))
        except ModelClosed:
            outcomes.append("closed")

    async def close() -> None:
        await batcher.aclose()
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
        await batcher.submit(4)


async def test_cancelled_callers_are_released_while_their_batch_runs_for_the_others() -> None:
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher(max_batch=4)
    results: list[int] = []
    scopes = [anyio.CancelScope() for _ in range(4)]

    async def call(item: int) -> None:
        with scopes[item]:
            results.append(await batcher.submit(item))

    async with anyio.create_task_group() as tasks:
        for item in range(4):
            tasks.start_soon(call, item)
        await machine.wait_entered()
        async with anyio.create_task_group() as released:
            for item in (0, 3):
                scopes[item].cancel()
            released.start_soon(anyio.wait_all_tasks_blocked)
        assert scopes[0].cancelled_caught
        assert scopes[3].cancelled_caught
        machine.gate.set()
    assert sorted(results) == [2, 4]
    assert [sorted(batch) for batch in machine.batches] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_asyncio_task_cancel_releases_a_caller_and_no_other(place: int) -> None:
    """`Task.cancel()` ignores anyio's shields; the batch must be waited for all the same."""
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher(max_batch=4)
    calls = [asyncio.create_task(batcher.submit(item)) for item in range(3)]
    await machine.wait_entered()
    calls[place].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[place]
    machine.gate.set()
    rest = [item for item in range(3) if item != place]
    assert await asyncio.gather(*(calls[item] for item in rest)) == [2 * item for item in rest]
    assert machine.batches == [[0, 1, 2]]


async def test_an_idle_batcher_has_no_task() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=4, workers=2)
    before = len(anyio.get_running_tasks())
    async with anyio.create_task_group() as tasks:
        for item in range(9):
            tasks.start_soon(batcher.submit, item)
    assert len(anyio.get_running_tasks()) == before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_that_has_begun_is_awaited_when_the_loop_ends(backend: str) -> None:
    machine = Machine()
    machine.gate.clear()

    async def main() -> None:
        batcher = machine.batcher()
        waiting = spawn(lambda: batcher.submit(1), name="caller")
        await machine.wait_entered()
        assert not waiting.done
        threading.Timer(0.05, machine.gate.set).start()

    anyio.run(main, backend=backend)
    assert machine.gate.is_set()
    assert machine.inside == 0


class Lost(Exception):
    """A worker that will never run again."""


async def test_a_lost_worker_leaves_the_rotation_and_the_last_one_ends_it() -> None:
    ran: list[tuple[str, int]] = []
    lost: list[Exception] = []
    broken: set[str] = set()

    async def run(worker: str, items: Sequence[int]) -> list[int]:
        await checkpoint()
        if worker in broken:
            raise Lost(worker)
        ran.extend((worker, item) for item in items)
        return [2 * item for item in items]

    batcher: Batcher[str, int, int] = Batcher(
        run,
        workers=["one", "two"],
        max_batch=4,
        is_lost=lambda error: isinstance(error, Lost),
        on_lost=lost.append,
    )
    broken.add("two")
    with pytest.raises(Lost, match="two"):
        await batcher.submit(1)
    assert lost == []
    for item in range(3):
        assert await batcher.submit(item) == 2 * item
    assert {worker for worker, _ in ran} == {"one"}
    broken.add("one")
    for item in range(3):
        with pytest.raises(Lost, match="one"):
            await batcher.submit(item)
    assert [str(error) for error in lost] == ["one"]
    await batcher.aclose()
    with pytest.raises(Lost, match="one"):
        await batcher.submit(4)


@pytest.mark.parametrize("seed", range(20))
async def test_random_cancellations_leave_every_other_call_right(seed: int) -> None:
    machine = Machine()
    dice = random.Random(seed)
    batcher = machine.batcher(max_batch=dice.choice([1, 3]), workers=dice.choice([1, 2]))
    wanted: set[int] = set()
    got: dict[int, int] = {}

    async def call(item: int, cancelled: bool) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                if cancelled:
                    tasks.start_soon(cancel_soon, scope)
                got[item] = await batcher.submit(item)

    async def cancel_soon(scope: anyio.CancelScope) -> None:
        for _ in range(dice.randrange(20)):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        for item in range(200):
            cancelled = dice.random() < 1 / 3
            if not cancelled:
                wanted.add(item)
            tasks.start_soon(call, item, cancelled)
    assert wanted <= set(got)
    assert all(result == 2 * item for item, result in got.items())
    assert batcher.waiting == 0
    await batcher.aclose()


async def test_a_bad_item_fails_alone_and_the_rest_of_its_batch_succeeds() -> None:
    machine = Machine()
    machine.gate.clear()
    batcher = machine.batcher(max_batch=8)
    outcomes: dict[int, object] = {}

    async def call(item: int) -> None:
        try:
            outcomes[item] = await batcher.submit(item)
        except ValueError as error:
            outcomes[item] = str(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, 0)
        await machine.wait_entered()
        for item in (1, -2, 3, -4):
            tasks.start_soon(call, item)
        await anyio.wait_all_tasks_blocked()
        machine.gate.set()
    assert outcomes == {0: 0, 1: 2, -2: "negative: [-2]", 3: 6, -4: "negative: [-4]"}


async def test_a_run_that_returns_too_few_results_is_an_error() -> None:
    async def run(_worker: int, _items: Sequence[int]) -> list[int]:
        return []

    batcher: Batcher[int, int, int] = Batcher(run, workers=[0])
    with pytest.raises(ValueError, match=r"values to unpack|zip"):
        await batcher.submit(1)


async def test_max_wait_holds_a_batch_back_until_it_is_full() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=3, max_wait=1e6, clock=FakeClock())
    results: list[int] = []

    async def call(item: int) -> None:
        results.append(await batcher.submit(item))

    async with anyio.create_task_group() as tasks:
        for item in (1, 2):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
        assert machine.batches == []
        tasks.start_soon(call, 3)
    assert machine.batches == [[1, 2, 3]]
    assert sorted(results) == [2, 4, 6]


async def test_max_wait_counts_from_the_first_items_arrival() -> None:
    """What has waited that long behind another batch is not held back again."""
    machine = Machine()
    machine.gate.clear()
    clock = FakeClock()
    batcher = machine.batcher(max_batch=2, max_wait=1e6, clock=clock)
    async with anyio.create_task_group() as tasks:
        for item in (1, 2, 3):
            tasks.start_soon(batcher.submit, item)
            await anyio.wait_all_tasks_blocked()
        await machine.wait_entered()
        clock.now += 1e6
        machine.gate.set()
    assert machine.batches == [[1, 2], [3]]


async def test_a_batch_runs_when_max_wait_is_over() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=2, max_wait=0.001)
    assert await batcher.submit(4) == 8


async def test_a_caller_cancelled_while_its_batch_fills_leaves_its_place_to_another() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=3, max_wait=1e6, clock=FakeClock())
    results: list[int] = []

    async def call(item: int) -> None:
        results.append(await batcher.submit(item))

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(batcher.submit, 1)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(call, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        for item in (3, 4):
            tasks.start_soon(call, item)
            await anyio.wait_all_tasks_blocked()
    assert machine.batches == [[2, 3, 4]]
    assert sorted(results) == [4, 6, 8]


async def test_no_batch_waits_for_callers_that_were_all_cancelled() -> None:
    batcher = Machine().batcher(max_batch=3, max_wait=1e6, clock=FakeClock())
    before = len(anyio.get_running_tasks())
    with anyio.move_on_after(0.01):
        await batcher.submit(1)
    await anyio.wait_all_tasks_blocked()
    assert len(anyio.get_running_tasks()) == before


async def test_closing_refuses_what_waits_for_its_batch_to_fill() -> None:
    machine = Machine()
    batcher = machine.batcher(max_batch=2, max_wait=1e6, clock=FakeClock())

    async def call() -> None:
        with pytest.raises(ModelClosed):
            await batcher.submit(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        await batcher.aclose()
    assert machine.batches == []


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"workers": 0}, {"max_wait": -1.0}, {"max_wait": float("nan")}]
)
async def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        Machine().batcher(**options)  # type: ignore[arg-type]
