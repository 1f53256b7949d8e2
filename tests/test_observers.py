"""Observers: told in order, the latest value, and never in each other's way."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aioembed.observers import Observable


class Counter(Observable[int]):
    def set(self, value: int) -> None:
        self._publish(value)


def test_the_value_is_the_same_object_until_it_changes() -> None:
    """React's external-store contract: getSnapshot is stable between changes."""
    store: Observable[object] = Observable(object())
    assert store.value is store.value


def test_a_thousand_observers_are_told_in_the_order_they_came() -> None:
    counter = Counter(0)
    seen: list[int] = []
    for number in range(1000):
        counter.subscribe(lambda number=number: seen.append(number))  # type: ignore[misc]
    counter.set(1)
    assert seen == list(range(1000))


def test_a_raising_observer_is_logged_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counter = Counter(0)
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


def test_unsubscribing_in_a_callback_takes_effect_at_once() -> None:
    counter = Counter(0)
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
    counter = Counter(0)
    seen: list[int] = []

    def once() -> None:
        stop()
        counter.subscribe(lambda: seen.append(counter.value))

    stop = counter.subscribe(once)
    counter.set(1)
    assert seen == []
    counter.set(2)
    assert seen == [2]


def test_unsubscribing_twice_is_harmless_and_touches_nobody_else() -> None:
    counter = Counter(0)
    seen: list[int] = []
    callback = seen.append

    def tell() -> None:
        callback(counter.value)

    stop = counter.subscribe(tell)
    counter.subscribe(tell)
    stop()
    stop()
    counter.set(5)
    assert seen == [5]


def test_a_change_made_in_a_callback_reaches_everyone_last() -> None:
    counter = Counter(0)
    early: list[int] = []
    late: list[int] = []

    def push_once() -> None:
        early.append(counter.value)
        if counter.value == 1:
            counter.set(2)

    counter.subscribe(push_once)
    counter.subscribe(lambda: late.append(counter.value))
    counter.set(1)
    assert early == [1, 2]
    assert late[-1] == 2
    assert late == sorted(late)


@pytest.mark.anyio
async def test_values_start_with_the_current_and_a_slow_reader_skips() -> None:
    counter = Counter(0)
    seen: list[int] = []

    async def read() -> None:
        async for value in counter.values(lambda value: value >= 100):
            seen.append(value)
            await anyio.wait_all_tasks_blocked()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        for value in range(1, 101):
            counter.set(value)
    assert seen[0] == 0
    assert seen[-1] == 100
    assert len(seen) < 10


@pytest.mark.anyio
async def test_many_readers_each_see_the_end() -> None:
    counter = Counter(0)
    ends: list[int] = []

    async def read() -> None:
        async for value in counter.values(lambda value: value == 3):
            last = value
        ends.append(last)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(read)
        for value in (1, 2, 3):
            await checkpoint()
            counter.set(value)
    assert ends == [3] * 50


@pytest.mark.anyio
async def test_waiting_for_a_change_returns_the_new_value() -> None:
    counter = Counter(0)
    async with anyio.create_task_group() as tasks:

        async def change() -> None:
            await anyio.wait_all_tasks_blocked()
            counter.set(7)

        tasks.start_soon(change)
        assert await counter.wait_changed(0) == 7
