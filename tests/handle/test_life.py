"""The life of a handle: loading, observing, closing, on both event loops."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, ModelState, Status
from aioembed.errors import (
    InvalidConfig,
    ModelClosed,
    ModelFileUnreadable,
    ModelNotLoaded,
    UnknownModel,
)

from ..programs import TINY_IMAGE, TINY_IMAGE_PROGRAM
from .conftest import Brake, Make

pytestmark = pytest.mark.anyio
Pixels = NDArray[np.uint8]


async def test_entering_loads_in_the_background_and_leaving_closes(
    make: Make, pixels: Pixels
) -> None:
    seen: list[Status] = []
    async with make() as model:
        model.subscribe(lambda: seen.append(model.state.status))
        assert model.state.status is Status.IDLE
        vector = await model.forward(pixels)
        assert vector.shape == (512,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    seen = [status for status in seen if status is not Status.IDLE]  # maybe of the queue alone
    deduplicated = [s for i, s in enumerate(seen) if i == 0 or s is not seen[i - 1]]
    assert deduplicated == ["loading", "ready", "generating", "ready", "closed"]


async def test_making_a_handle_does_no_io(tmp_path: object) -> None:
    handle = ImageEmbeddings(f"{tmp_path}/nothing-here.pte")
    assert handle.state == ModelState()
    await handle.aclose()


async def test_prevent_load_leaves_the_model_idle_until_load(make: Make, pixels: Pixels) -> None:
    async with make(prevent_load=True) as model:
        await anyio.wait_all_tasks_blocked()
        assert model.state.status is Status.IDLE
        with pytest.raises(ModelNotLoaded, match="load"):
            await model.forward(pixels)
        await model.load()
        assert model.state.is_ready
        await model.forward(pixels)


async def test_a_handle_works_without_async_with(pixels: Pixels) -> None:
    model = ImageEmbeddings("efficientnet-lite0")
    await model.load()
    await model.load()
    assert (await model.embed(pixels)).shape == (1280,)
    await model.aclose()
    await model.aclose()
    assert model.state.status is Status.CLOSED


async def test_concurrent_loads_are_one(loads: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    loads.hold()
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(model.load)
        await loads.wait_entered()
        await anyio.wait_all_tasks_blocked()
        assert model.state.status is Status.LOADING
        loads.release()
    assert loads.calls == 1
    assert model.state.status is Status.READY
    await model.aclose()


async def test_forward_waits_for_the_load_that_is_under_way(loads: Brake, pixels: Pixels) -> None:
    loads.hold()
    async with ImageEmbeddings(TINY_IMAGE) as model, anyio.create_task_group() as tasks:
        tasks.start_soon(model.forward, pixels)
        await loads.wait_entered()
        await anyio.wait_all_tasks_blocked()
        assert model.state.status is Status.LOADING
        assert model.state.queue_depth == 1
        loads.release()


async def test_when_the_loading_caller_is_cancelled_another_takes_over(loads: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    loads.hold()
    async with anyio.create_task_group() as others:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(model.load)
                await loads.wait_entered()
                others.start_soon(model.load)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                loads.release()
    assert model.state.status is Status.READY
    await model.aclose()


async def test_a_failed_load_is_an_error_for_everyone_and_can_be_tried_again(
    tmp_path: object, pixels: Pixels
) -> None:
    path = anyio.Path(f"{tmp_path}/model.pte")
    async with ImageEmbeddings(str(path)) as model:
        state = await model.wait_for(Status.FAILED)
        assert isinstance(state.error, ModelFileUnreadable)
        with pytest.raises(ModelFileUnreadable, match=r"model\.pte"):
            await model.forward(pixels)
        with pytest.raises(ModelFileUnreadable):
            await model.load()
        await path.write_bytes(await anyio.Path(TINY_IMAGE_PROGRAM).read_bytes())
        await model.load()
        assert model.state.error is None
        assert (await model.forward(pixels)).shape == (512,)


async def test_an_error_in_the_body_is_raised_unchanged(make: Make) -> None:
    model = make()

    async def body() -> None:
        async with model:
            await model.wait_for(Status.READY)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()
    assert model.state.status is Status.CLOSED


async def test_closing_while_loading_ends_the_load(loads: Brake, pixels: Pixels) -> None:
    loads.hold()
    refused: list[str] = []

    async def call() -> None:
        try:
            await model.forward(pixels)
        except ModelClosed:
            refused.append("closed")

    async with ImageEmbeddings(TINY_IMAGE) as model, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await loads.wait_entered()
        tasks.start_soon(model.aclose)
        await anyio.wait_all_tasks_blocked()
        loads.release()
    assert refused == ["closed"]
    assert model.state.status is Status.CLOSED


async def test_closing_waits_for_the_inference_in_flight(inference: Brake, pixels: Pixels) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    await model.load()
    inference.hold()
    results: list[object] = []

    async def call() -> None:
        results.append(await model.forward(pixels))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await inference.wait_entered()
        tasks.start_soon(model.aclose)
        tasks.start_soon(model.aclose)
        await anyio.wait_all_tasks_blocked()
        assert model.state.status is Status.GENERATING
        inference.release()
    assert len(results) == 1
    assert model.state.status is Status.CLOSED
    assert model.state.queue_depth == 0
    with pytest.raises(ModelClosed):
        await model.forward(pixels)


async def test_states_begin_with_the_current_one_and_end_with_closed(make: Make) -> None:
    model = make()
    seen: list[Status] = []

    async def watch() -> None:
        seen.extend([state.status async for state in model.states()])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        await model.load()
        await anyio.wait_all_tasks_blocked()
        await model.aclose()
    assert seen[0] is Status.IDLE
    assert seen[-1] is Status.CLOSED
    assert Status.READY in seen


async def test_a_slow_reader_of_states_never_holds_up_a_forward(make: Make, pixels: Pixels) -> None:
    async with make() as model, anyio.create_task_group() as tasks:

        async def stuck() -> None:
            async for _ in model.states():
                await anyio.sleep_forever()

        tasks.start_soon(stuck)
        await anyio.wait_all_tasks_blocked()
        for _ in range(20):
            await model.forward(pixels)
        tasks.cancel_scope.cancel()


async def test_a_thousand_observers_and_raising_ones_do_not_affect_the_model(
    make: Make, pixels: Pixels
) -> None:
    async with make() as model:
        told = [0] * 1000

        def count(place: int) -> None:
            told[place] += 1
            if place % 10 == 0:
                raise RuntimeError("observer")

        for place in range(1000):
            model.subscribe(lambda place=place: count(place))  # type: ignore[misc]
        assert (await model.forward(pixels)).shape == (512,)
    assert min(told) == max(told) > 0


async def test_waiting_for_an_unreachable_state_is_an_error(make: Make) -> None:
    model = make()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(model.aclose)
        with pytest.raises(ModelClosed):
            await model.wait_for(Status.GENERATING)


async def test_wait_for_takes_a_condition(make: Make) -> None:
    async with make() as model:
        state = await model.wait_for(lambda state: state.is_ready)
        assert state.download_progress == 1


@pytest.mark.parametrize(
    "wanted", [Status.READY, "ready", lambda state: state.is_ready], ids=lambda _: ""
)
async def test_waiting_for_what_a_failed_load_prevents_raises_its_error(
    tmp_path: object, wanted: Any
) -> None:
    async with ImageEmbeddings(f"{tmp_path}/missing.pte") as model:
        for _ in range(2):  # while it loads, and after
            with anyio.fail_after(30), pytest.raises(ModelFileUnreadable):
                await model.wait_for(wanted)
        assert (await model.wait_for("failed")).status is Status.FAILED
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.wait_for, "closed")
            await anyio.wait_all_tasks_blocked()
            await model.aclose()


async def test_wait_for_takes_the_name_of_a_status(make: Make) -> None:
    async with make() as model:
        assert (await model.wait_for("ready")).status is Status.READY


@pytest.mark.parametrize(
    ("name", "near"), [("redy", "'ready'"), ("Ready", "'ready'"), ("x", "'idle'"), (3, "'idle'")]
)
async def test_an_unknown_status_is_refused_with_the_nearest_names(
    make: Make, name: Any, near: str
) -> None:
    with pytest.raises(InvalidConfig, match=near):
        await make().wait_for(name)


async def test_a_handle_cannot_be_entered_twice(make: Make) -> None:
    async with make(prevent_load=True) as model:
        with pytest.raises(InvalidConfig):
            async with model:
                pass


async def test_an_unknown_model_is_refused_immediately_with_the_nearest_names() -> None:
    with pytest.raises(UnknownModel, match="efficientnet-lite0"):
        ImageEmbeddings("efficientnet-lite1")


async def test_a_text_model_is_refused_by_an_image_handle() -> None:
    with pytest.raises(InvalidConfig, match="text"):
        ImageEmbeddings("clip-vit-base-patch32-text")


async def test_the_space_is_known_once_loaded(make: Make) -> None:
    async with make() as first, make() as second:
        assert first.embedding_dim == 512
        with pytest.raises(ModelNotLoaded):
            _ = first.space_id
        await first.load()
        await second.load()
        assert first.space_id == second.space_id
        assert first.space.is_compatible(second.space)
