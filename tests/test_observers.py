"""Observers are called in order with the latest value, and do not affect each other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioembed import ModelState
from aioembed._tasks import spawn
from aioembed.state import Lifecycle, Status


class Counter(Lifecycle):
    """Publishes numbers as moves: the figure alone would wait for the event loop's next turn."""

    def set(self, number: int) -> None:
        back = self.status is Status.IDLE
        self.move(Status.LOADING if back else Status.IDLE, queue_depth=number)

    @property
    def number(self) -> int:
        return self.value.queue_depth


def test_the_value_is_the_same_object_until_it_changes() -> None:
    """React's external-store contract: getSnapshot is stable between changes."""
    store = Lifecycle()
    before = store.value
    store.update(queue_depth=0)
    assert store.value is before
    store.update(queue_depth=1)
    assert store.value is store.value is not before


def test_a_thousand_observers_are_called_in_the_order_they_came() -> None:
    counter = Counter()
    seen: list[int] = []
    for number in range(1000):
        counter.subscribe(lambda number=number: seen.append(number))  # type: ignore[misc]
    counter.set(1)
    assert seen == list(range(1000))


def test_an_observer_that_raises_is_logged_and_does_not_affect_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counter = Counter()
    seen: list[int] = []

    def broken() -> None:
        raise RuntimeError("broken observer")

    counter.subscribe(lambda: seen.append(1))
    counter.subscribe(broken)
    counter.subscribe(lambda: seen.append(2))
    with caplog.at_level(logging.ERROR, "aioembed"):
        counter.set(1)
    assert seen == [1, 2]
    assert "broken observer" in caplog.text


def test_unsubscribing_in_a_callback_takes_effect_immediately() -> None:
    counter = Counter()
    seen: list[str] = []
    unsubscribe: list[Callable[[], None]] = []

    def first() -> None:
        seen.append("first")
        for stop in unsubscribe:
            stop()

    unsubscribe.append(counter.subscribe(first))
    unsubscribe.append(counter.subscribe(lambda: seen.append("second")))
    counter.set(1)
    counter.set(2)
    assert seen == ["first"]


def test_subscribing_in_a_callback_starts_with_the_next_change() -> None:
    counter = Counter()
    seen: list[int] = []

    def once() -> None:
        stop()
        counter.subscribe(lambda: seen.append(counter.number))

    stop = counter.subscribe(once)
    counter.set(1)
    assert seen == []
    counter.set(2)
    assert seen == [2]


def test_unsubscribing_twice_does_not_affect_the_others() -> None:
    counter = Counter()
    seen: list[int] = []
    callback = seen.append

    def tell() -> None:
        callback(counter.number)

    stop = counter.subscribe(tell)
    counter.subscribe(tell)
    stop()
    stop()
    counter.set(5)
    assert seen == [5]


def test_a_change_made_in_a_callback_reaches_everyone_last() -> None:
    counter = Counter()
    early: list[int] = []
    late: list[int] = []

    def push_once() -> None:
        early.append(counter.number)
        if counter.number == 1:
            counter.set(2)

    counter.subscribe(push_once)
    counter.subscribe(lambda: late.append(counter.number))
    counter.set(1)
    assert early == [1, 2]
    assert late[-1] == 2
    assert late == sorted(late)


@pytest.mark.anyio
async def test_values_start_with_the_current_and_a_slow_reader_skips() -> None:
    counter = Counter()
    seen: list[int] = []

    async def read() -> None:
        async for value in counter.values():
            seen.append(value.queue_depth)
            await anyio.wait_all_tasks_blocked()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        for value in range(1, 101):
            counter.set(value)
        counter.move(Status.CLOSED)
    assert seen[0] == 0
    assert seen[-1] == 100
    assert len(seen) < 10


@pytest.mark.anyio
async def test_many_readers_each_see_the_end() -> None:
    counter = Counter()
    ends: list[int] = []

    async def read() -> None:
        async for value in counter.values():
            last = value.queue_depth
        ends.append(last)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(read)
        for value in (1, 2, 3):
            await checkpoint()
            counter.set(value)
        counter.move(Status.CLOSED)
    assert ends == [3] * 50


@pytest.mark.anyio
async def test_readers_end_at_closed_even_if_the_model_is_opened_again_in_the_same_turn() -> None:
    counter = Counter()
    seen: list[Status] = []

    async def read() -> None:
        seen.extend([state.status async for state in counter.values()])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        counter.move(Status.CLOSED)
        counter.move(Status.IDLE)
    assert seen == [Status.IDLE, Status.CLOSED]


@pytest.mark.anyio
async def test_figures_are_published_once_per_turn_and_moves_immediately() -> None:
    lifecycle = Lifecycle()
    seen: list[ModelState] = []
    lifecycle.subscribe(lambda: seen.append(lifecycle.value))
    for depth in range(1, 100):
        lifecycle.update(queue_depth=depth)
        assert lifecycle.value.queue_depth == depth
    assert seen == []
    await anyio.wait_all_tasks_blocked()
    assert [state.queue_depth for state in seen] == [99]
    lifecycle.update(queue_depth=5)
    lifecycle.move(Status.LOADING)
    assert [(state.status, state.queue_depth) for state in seen[1:]] == [(Status.LOADING, 5)]
    await anyio.wait_all_tasks_blocked()
    assert len(seen) == 2


def test_figures_are_published_immediately_where_no_event_loop_runs() -> None:
    lifecycle = Lifecycle()
    seen: list[int] = []
    lifecycle.subscribe(lambda: seen.append(lifecycle.value.queue_depth))
    lifecycle.update(queue_depth=3)
    assert seen == [3]


def test_the_value_may_be_read_from_any_thread_while_it_changes() -> None:
    lifecycle = Lifecycle()
    stop = threading.Event()
    problems: list[BaseException] = []

    def read() -> None:
        try:
            last = 0
            while not stop.is_set():
                depth = lifecycle.value.queue_depth
                assert depth >= last
                last = depth
        except BaseException as error:
            problems.append(error)
            raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for depth in range(20_000):
        lifecycle.update(queue_depth=depth, downloaded_bytes=depth)
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert lifecycle.value.queue_depth == 19_999


@pytest.mark.anyio
async def test_waiting_for_a_change_returns_the_new_value() -> None:
    counter = Counter()
    async with anyio.create_task_group() as tasks:

        async def change() -> None:
            await anyio.wait_all_tasks_blocked()
            counter.set(7)

        tasks.start_soon(change)
        assert (await counter.wait_changed(counter.value)).queue_depth == 7


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_in_an_observer_ends_the_program(backend: str) -> None:
    """Also where trio holds interrupts back: an observer is called in background tasks."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    async def move(lifecycle: Lifecycle) -> None:
        lifecycle.move(Status.LOADING)

    async def main() -> None:
        lifecycle = Lifecycle()
        lifecycle.subscribe(interrupted)
        spawn(lambda: move(lifecycle), name="move")
        await anyio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
