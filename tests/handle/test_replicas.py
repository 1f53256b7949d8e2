"""Copies of a program that run beside each other, and the other options of running one."""

from __future__ import annotations

import math
import threading
from typing import Any

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Queueing, Status, TextEmbeddings, Threads
from aioembed.errors import ExecutorchError, ForwardTimeout, InvalidConfig, ModelClosed
from aioembed.runtime import Program

from ..programs import TINY_IMAGE
from .conftest import Brake, HeldPath, Prepared

pytestmark = pytest.mark.anyio

Pixels = NDArray[np.uint8]


class Turnstile:
    """Lets native runs begin freely, and end one at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        start = Program.start

        def counted(program: Program, *inputs: Any, method: str = "forward") -> None:
            def begin() -> None:
                assert self.passes.acquire(timeout=60)
                start(program, *inputs, method=method)

            self.begun.release()
            threading.Thread(target=begin, daemon=True).start()

        monkeypatch.setattr(Program, "start", counted)

    async def wait_begun(self) -> None:
        await anyio.to_thread.run_sync(self.begun.acquire)


async def test_as_many_batches_run_concurrently_as_there_are_replicas(
    inference: Brake, prepared: Prepared, pixels: Pixels
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as one:
        expected = await one.forward(pixels)
    vectors: list[NDArray[np.float32]] = []

    async def call(model: ImageEmbeddings) -> None:
        vectors.append(await model.forward(pixels))

    async with ImageEmbeddings(TINY_IMAGE, threads=Threads(replicas=2)) as model:
        await model.load()
        await inference.wait_entered()  # the run of `one`
        inference.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call, model)
            await inference.wait_entered()
            await inference.wait_entered()
            await prepared.wait(1 + 5)
            assert inference.calls == 3
            inference.release()
        figures = model.statistics()
    assert sum(size * count for size, count in figures.batch_sizes.items()) == 5
    assert len(vectors) == 5
    for vector in vectors:
        np.testing.assert_allclose(vector, expected, atol=1e-5)


async def test_a_model_is_generating_while_any_replica_runs(
    monkeypatch: pytest.MonkeyPatch, pixels: Pixels
) -> None:
    turnstile = Turnstile(monkeypatch)
    ended = anyio.Event()
    statuses: list[Status] = []

    async def call() -> None:
        await model.forward(pixels)
        statuses.append(model.state.status)
        ended.set()

    async with ImageEmbeddings(TINY_IMAGE, threads=Threads(replicas=2)) as model:
        await model.load()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)
            await turnstile.wait_begun()
            await turnstile.wait_begun()
            turnstile.passes.release()
            await ended.wait()
            turnstile.passes.release()
    assert statuses == [Status.GENERATING, Status.READY]


async def test_closing_waits_for_every_replica_and_frees_each(
    inference: Brake, monkeypatch: pytest.MonkeyPatch, pixels: Pixels
) -> None:
    programs = note_programs(monkeypatch)
    inference.hold()
    async with anyio.create_task_group() as tasks:
        model = ImageEmbeddings(TINY_IMAGE, threads=Threads(replicas=3))
        await model.load()
        for _ in range(3):
            tasks.start_soon(model.forward, pixels)
        for _ in range(3):
            await inference.wait_entered()
        tasks.start_soon(model.aclose)
        await anyio.wait_all_tasks_blocked()
        assert model.state.status is Status.GENERATING
        inference.release()
    assert model.state.status is Status.CLOSED
    assert len(programs) == 3
    assert all(is_closed(program) for program in programs)


async def test_a_replica_that_cannot_be_loaded_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = note_programs(monkeypatch, most=2)
    model = ImageEmbeddings(TINY_IMAGE, threads=Threads(replicas=3))
    with pytest.raises(ExecutorchError, match="no memory"):
        await model.load()
    assert model.state.status is Status.FAILED
    assert len(programs) == 2
    assert all(is_closed(program) for program in programs)
    await model.aclose()


async def test_eight_calls_are_one_batch_where_they_may_wait_for_each_other(pixels: Pixels) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_wait=3600)) as model:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(model.forward, pixels)
        assert dict(model.statistics().batch_sizes) == {8: 1}


async def test_a_lone_call_runs_when_max_wait_is_over(pixels: Pixels) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_wait=0.001)) as model:
        assert (await model.forward(pixels)).shape == (512,)


async def test_a_deadline_also_ends_the_wait_for_others(pixels: Pixels) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_wait=3600)) as model:
        await model.load()
        with pytest.raises(ForwardTimeout):
            await model.forward(pixels, timeout=0.05)
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(model.forward, pixels)
        assert model.statistics().succeeded == 8


async def test_no_more_images_are_decoded_concurrently_than_there_are_threads_for_it(
    held_path: HeldPath,
) -> None:
    brake = held_path.brake
    async with ImageEmbeddings(TINY_IMAGE, threads=Threads(preprocess=2)) as model:
        await model.load()
        brake.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(model.forward, held_path)
            await brake.wait_entered()
            await brake.wait_entered()
            await anyio.wait_all_tasks_blocked()
            assert brake.calls == 2
            brake.release()
        assert brake.calls == 5


@pytest.mark.parametrize(
    "options",
    [
        {"replicas": 0},
        {"replicas": None},
        {"replicas": "2"},
        {"replicas": 2, "inference": 2},
        {"inference": 1.5},
        {"preprocess": 0},
        {"preprocess": -1},
        {"max_pending": 0},
        {"max_pending": True},
        {"max_wait": -0.001},
        {"max_wait": math.nan},
        {"max_wait": math.inf},
        {"max_wait": "1"},
        {"max_wait": True},
    ],
    ids=str,
)
async def test_values_that_cannot_work_are_refused_when_they_are_made(
    options: dict[str, Any],
) -> None:
    name = next(iter(options))
    with pytest.raises(InvalidConfig, match=name):
        (Threads if hasattr(Threads, name) else Queueing)(**options)


@pytest.mark.parametrize("handle", [ImageEmbeddings, TextEmbeddings])
@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": "2"},
        {"threads": True},
        {"queueing": 5},
        {"queueing": {"max_pending": 5}},
        {"idle_timeout": 0},
        {"idle_timeout": "60"},
        {"packed_weights": "no"},
        {"prevent_load": "no"},
        {"offline": "yes"},
        {"cache_dir": 3},
        {"http_client": "a client"},
        {"on_call": "log"},
        {"preprocessing": 3},
        {"sha256": 3},
        {"sha256": "abc"},
    ],
    ids=str,
)
async def test_options_that_cannot_work_are_refused_by_the_handle(
    handle: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        handle("model.pte", **options)


async def test_a_source_policy_that_is_something_else_is_refused() -> None:
    policy: Any = "untrusted"
    with pytest.raises(InvalidConfig, match="source_policy"):
        ImageEmbeddings(source_policy=policy)


def note_programs(monkeypatch: pytest.MonkeyPatch, most: int = 9) -> list[Program]:
    """Return a list of all programs that are loaded from now on; more than `most` cannot be."""
    programs: list[Program] = []
    load = Program.load

    def noted(path: Any, **options: Any) -> Program:
        if len(programs) == most:
            raise ExecutorchError("no memory", code=33, name="MemoryAllocationFailed", log=())
        programs.append(load(path, **options))
        return programs[-1]

    monkeypatch.setattr(Program, "load", noted)
    return programs


def is_closed(program: Program) -> bool:
    shape = program.methods["forward"].inputs[0].shape
    try:
        program.run(np.zeros(shape, np.float32))
    except ModelClosed:
        return True
    return False
