"""A handle may be opened and closed in different tasks, hooks and loops."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Status, Threads
from aioembed._tasks import spawn
from aioembed.errors import InvalidConfig, ModelClosed, ProgramLost, WrongEventLoop

from ..programs import TINY_IMAGE
from .conftest import Brake, Make

asynchronous = pytest.mark.anyio
Pixels = NDArray[np.uint8]
IMAGE = np.zeros((9, 9, 3), np.uint8)
BACKENDS = ["asyncio", "trio"]


async def in_another_task(call: Any) -> None:
    task = spawn(call, name="another task")
    await task.wait()
    if task.error is not None:
        raise task.error


@asynchronous
async def test_a_handle_is_entered_in_one_task_and_left_in_another(
    make: Make, pixels: Pixels
) -> None:
    model = make()
    await in_another_task(model.__aenter__)
    assert (await model.forward(pixels)).shape == (512,)
    await in_another_task(lambda: model.__aexit__(None, None, None))
    assert model.state.status is Status.CLOSED


@asynchronous
async def test_a_generator_fixture_may_be_torn_down_in_another_task(
    make: Make, pixels: Pixels
) -> None:
    async def fixture() -> AsyncIterator[ImageEmbeddings]:
        async with make() as model:
            yield model

    async def tear_down() -> None:
        async for _ in generator:
            pass

    generator = fixture()
    model = await anext(generator)
    assert (await model.forward(pixels)).shape == (512,)
    await in_another_task(tear_down)
    assert model.state.status is Status.CLOSED


@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.parametrize("entered", [True, False])
def test_a_closed_handle_opens_again_on_the_callers_loop(
    first: str, second: str, entered: bool
) -> None:
    model = ImageEmbeddings(TINY_IMAGE)

    async def with_block() -> None:
        async with model:
            assert (await model.forward(IMAGE)).shape == (512,)

    async def with_hooks() -> None:
        await model.load()
        assert (await model.forward(IMAGE)).shape == (512,)
        await model.aclose()
        with pytest.raises(ModelClosed, match="again"):
            await model.forward(IMAGE)

    for backend in (first, second, first):
        anyio.run(with_block if entered else with_hooks, backend=backend)
        assert model.state.status is Status.CLOSED
    assert model.statistics().succeeded == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handle_left_open_by_a_loop_that_ended_is_loaded_on_the_next(backend: str) -> None:
    model = ImageEmbeddings(TINY_IMAGE)

    async def forget() -> None:
        await model.__aenter__()
        await model.forward(IMAGE)

    async def go_on() -> None:
        with pytest.raises(WrongEventLoop, match="has ended"):
            await model.forward(IMAGE)
        await model.load()
        assert (await model.forward(IMAGE)).shape == (512,)
        await model.aclose()

    anyio.run(forget, backend=backend)
    for _ in range(2):
        anyio.run(go_on, backend=backend)
        assert model.state.status is Status.CLOSED
        anyio.run(model.load, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handle_left_open_by_a_loop_that_ended_is_closed_on_another(backend: str) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    anyio.run(model.load, backend=backend)
    anyio.run(model.aclose, backend=backend)
    assert model.state.status is Status.CLOSED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("moment", ["load", "forward", "stream"])
def test_a_program_that_forgets_to_close_ends_cleanly(backend: str, moment: str) -> None:
    code = f"""
import anyio, numpy as np
from aioembed import ImageEmbeddings
image = np.zeros((9, 9, 3), np.uint8)
model = ImageEmbeddings()
async def main():
    await model.__aenter__()
    if {moment!r} != "load":
        await model.forward(image)
    if {moment!r} == "stream":
        async for _ in model.embed_stream([image] * 9):
            pass
anyio.run(main, backend={backend!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@asynchronous
async def test_a_handle_that_is_being_closed_says_so(inference: Brake, pixels: Pixels) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    await model.load()
    inference.hold()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(model.forward, pixels)
        await inference.wait_entered()
        tasks.start_soon(model.aclose)
        await anyio.wait_all_tasks_blocked()
        for call in (model.load, model.__aenter__, lambda: model.forward(pixels)):
            with pytest.raises(ModelClosed):
                await call()
        inference.release()
    await model.load()
    assert (await model.forward(pixels)).shape == (512,)
    await model.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_close_goes_on_when_its_caller_is_cancelled(
    inference: Brake, pixels: Pixels
) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    await model.load()
    inference.hold()
    running = asyncio.create_task(model.forward(pixels))
    await inference.wait_entered()
    closing = asyncio.create_task(model.aclose())
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    inference.release()
    assert (await running).shape == (512,)
    await model.wait_for(Status.CLOSED)


@asynchronous
async def test_a_handle_shows_its_name_and_status(make: Make) -> None:
    async with make(prevent_load=True) as model:
        assert repr(model) == f"<{type(model).__name__} {model.spec.name!r}: idle>"
        await model.load()
        assert repr(model).endswith(": ready>")
        with pytest.raises(InvalidConfig, match="in use"):
            await model.__aenter__()


@asynchronous
@pytest.mark.usefixtures("quick_gc")
async def test_a_hundred_rounds_of_load_and_close_leave_nothing_behind(pixels: Pixels) -> None:
    process = psutil.Process()
    model = ImageEmbeddings(TINY_IMAGE)
    held: list[tuple[int, int, int]] = []
    for _ in range(100):
        async with model:
            await model.forward(pixels)
        gc.collect()
        held.append((process.memory_info().rss, process.num_fds(), threading.active_count()))
    memory, descriptors, threads = zip(*held, strict=True)
    assert max(memory[60:]) - max(memory[20:60]) < 3e6
    # The least of twenty rounds: a thread that is about to end may hold one for a moment.
    assert min(descriptors[80:]) <= max(descriptors[:20])
    assert min(threads[80:]) <= max(threads[:20])


@pytest.fixture
def losing_program(tmp_path: Path) -> Path:
    """A program that loads well and that the runtime gives up in its first run."""
    program = Path(__file__).parents[1] / "programs" / "tiny_clip_image.pte"
    content = bytearray(program.read_bytes())
    assert content[5003] == 5
    content[5003] = 1
    path = tmp_path / "losing.pte"
    path.write_bytes(content)
    return path


@asynchronous
@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_model_that_the_runtime_gave_up_has_failed_and_can_be_loaded_again(
    losing_program: Path, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioembed._loader.probe_once", _pass_trial)
    async with ImageEmbeddings(losing_program, threads=Threads(replicas=replicas)) as model:
        for copies in range(replicas, 0, -1):
            await model.load()
            assert model.state.is_ready
            with pytest.raises(ProgramLost):
                await model.forward(IMAGE)
            assert (model.state.status is Status.FAILED) == (copies == 1)
        state = model.state
        assert isinstance(state.error, ProgramLost)
        with pytest.raises(ProgramLost):
            await model.forward(IMAGE)
        with pytest.raises(ProgramLost):
            await model.wait_for("ready")
        with pytest.raises(ProgramLost):
            async for _ in model.embed_stream([IMAGE] * 3):
                pass
        await model.load()
        assert model.state.is_ready
        with pytest.raises(ProgramLost):
            async for _ in model.embed_stream([IMAGE] * 9):
                pass


async def _pass_trial(*_: object) -> None:
    """Skip the trial run, which would reject the program."""
