"""A handle is an external store as React's `useSyncExternalStore` wants one.

`subscribe(callback)` returns the function that ends it, `state` is the snapshot: immutable, the
same object until something changes, and already the new one when the callback is called.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from aioembed import ImageEmbeddings, ModelState, Status

from ..programs import TINY_IMAGE

pytestmark = pytest.mark.anyio

PIXELS = np.zeros((48, 64, 3), np.uint8)


class Component:
    """Does what React does with a store: compares snapshots by identity, renders on a change."""

    def __init__(self, store: ImageEmbeddings) -> None:
        self._store = store
        self.rendered: list[ModelState] = []
        self._render()
        self.unmount = store.subscribe(self._check)

    def _check(self) -> None:
        if self._store.state is not self.rendered[-1]:
            self._render()

    def _render(self) -> None:
        snapshot = self._store.state
        assert snapshot is self._store.state, "React would render indefinitely"
        self.rendered.append(snapshot)


async def test_a_component_renders_each_change_once_and_sees_no_tearing() -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    first, second = Component(model), Component(model)
    async with model:
        await model.forward(PIXELS)
    assert first.rendered == second.rendered
    for one, other in zip(first.rendered, second.rendered, strict=True):
        assert one is other
    assert len({id(state) for state in first.rendered}) == len(first.rendered)
    seen = [state.status for state in first.rendered]
    for status in (Status.IDLE, Status.LOADING, Status.READY, Status.GENERATING, Status.CLOSED):
        assert status in seen


async def test_the_snapshot_is_one_immutable_object_until_something_changes() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        snapshot = model.state
        assert all(model.state is snapshot for _ in range(100))
        with pytest.raises(ValidationError):
            snapshot.queue_depth = 7
        told: list[ModelState] = []
        model.subscribe(lambda: told.append(model.state))
        await model.load()
        assert (model.state is snapshot, told) == (True, [])
        await model.forward(PIXELS)
        assert model.state is not snapshot
        assert snapshot.status is Status.READY


async def test_subscribing_calls_nothing_and_a_callback_may_be_subscribed_twice() -> None:
    told: list[Status] = []
    model = ImageEmbeddings(TINY_IMAGE)

    def tell() -> None:
        told.append(model.state.status)

    stop_one = model.subscribe(tell)
    model.subscribe(tell)
    assert told == []
    stop_one()
    stop_one()
    await model.aclose()
    assert told == [Status.CLOSED]


async def test_a_component_may_unmount_itself_or_another_while_it_is_notified() -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    told: list[str] = []
    stops: dict[str, Callable[[], None]] = {}

    def first() -> None:
        told.append("first")
        stops["first"]()
        stops["second"]()

    stops["first"] = model.subscribe(first)
    stops["second"] = model.subscribe(lambda: told.append("second"))
    stops["third"] = model.subscribe(lambda: told.append("third"))
    async with model:
        await model.load()
    assert told[0] == "first"
    assert told.count("first") == 1
    assert "second" not in told
    assert told.count("third") >= 3


async def test_a_component_that_mounts_while_others_are_notified_renders_the_new_state() -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    late: list[Component] = []

    def mount_once() -> None:
        if not late:
            late.append(Component(model))

    model.subscribe(mount_once)
    async with model:
        await model.load()
    assert late[0].rendered[0].status is Status.LOADING
    assert late[0].rendered[-1] is model.state
