"""Hundreds of callers, cancelled and with bad images at random: all end right, nothing leaks."""

from __future__ import annotations

import gc
import random
import threading

import anyio
import numpy as np
import psutil
import pytest
from anyio.lowlevel import checkpoint
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Status, Threads
from aioembed.errors import ForwardTimeout, ImageDecodeError

from ..programs import TINY_IMAGE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_gc")]

CALLS = 500
IMAGES = [
    np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for number in range(8)
]
Vectors = list[NDArray[np.float32]]


async def storm(model: ImageEmbeddings, expected: Vectors, seed: int) -> None:
    """500 concurrent calls: a fifth is cancelled at random, a tenth has a broken image."""
    dice = random.Random(seed)
    cancelled = {place for place in range(CALLS) if dice.random() < 1 / 5}
    broken = {place for place in range(CALLS) if dice.random() < 1 / 10}
    ended: dict[int, str] = {}

    async def call(place: int) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                if place in cancelled:
                    tasks.start_soon(cancel, scope, dice.randrange(400))
                ended[place] = await forward(place)
        if scope.cancelled_caught:
            ended[place] = "cancelled"

    async def forward(place: int) -> str:
        try:
            vector = await model.forward(b"broken" if place in broken else IMAGES[place % 8])
        except ImageDecodeError:
            return "broken"
        np.testing.assert_allclose(vector, expected[place % 8], atol=1e-5)
        return "vector"

    async def cancel(scope: anyio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await checkpoint()
        scope.cancel()

    with anyio.fail_after(300):
        async with anyio.create_task_group() as tasks:
            for place in range(CALLS):
                tasks.start_soon(call, place)
    for place in range(CALLS):
        right = "broken" if place in broken else "vector"
        assert ended[place] == right or (place in cancelled and ended[place] == "cancelled")
    assert model.state.status is Status.READY
    assert model.state.queue_depth == 0


async def run_storms(seeds: range, *, replicas: int = 1) -> list[int]:
    """Run them on one handle; return the memory in bytes after each."""
    memory = []
    most = (0, 0)
    async with ImageEmbeddings(TINY_IMAGE, threads=Threads(replicas=replicas)) as model:
        expected = [await model.forward(image) for image in IMAGES]
        tasks = len(anyio.get_running_tasks())
        for seed in seeds:
            await storm(model, expected, seed)
            assert len(anyio.get_running_tasks()) == tasks
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
            held = (threading.active_count(), psutil.Process().num_fds())
            most = held if seed == seeds[0] else most
            # a worker thread whose caller was cancelled may not be idle yet when another is wanted
            assert held[0] <= most[0] + 1
            assert held[1] <= most[1]
        figures = model.statistics()
        assert figures.pending == 0
        assert figures.submitted == len(IMAGES) + CALLS * len(seeds)
        assert figures.submitted == figures.succeeded + figures.failed + figures.cancelled
    return memory


@pytest.mark.parametrize("replicas", [1, 2])
async def test_500_calls_with_cancellations_and_broken_images_end_correctly(replicas: int) -> None:
    await run_storms(range(3 - replicas), replicas=replicas)


@pytest.mark.slow
async def test_20_such_rounds_leave_no_task_thread_or_memory_behind() -> None:
    memory = await run_storms(range(20))
    assert memory[-1] - memory[4] < 10e6


@pytest.mark.slow
async def test_a_long_stream_of_generated_images_has_flat_memory() -> None:
    memory: list[int] = []
    async with ImageEmbeddings(TINY_IMAGE) as model:
        async for result in model.embed_stream(IMAGES[number % 8] for number in range(2000)):
            if result.key % 250 == 249:
                gc.collect()
                memory.append(psutil.Process().memory_info().rss)
        assert model.statistics().succeeded == 2000
    assert max(memory[4:]) - max(memory[:4]) < 3e6


async def misuse(model: ImageEmbeddings, seed: int) -> None:
    """One caller: broken images, cancelled calls, missed deadlines, streams left half read."""
    dice = random.Random(seed)
    for _ in range(50):
        kind = dice.randrange(6)
        try:
            if kind == 0:
                await model.forward(b"broken")
            elif kind == 1:
                with anyio.move_on_after(dice.random() / 20):
                    await model.forward(dice.choice(IMAGES))
            elif kind == 2:
                await model.forward(dice.choice(IMAGES), timeout=dice.random() / 5 + 1e-6)
            elif kind == 3 and seed % 4 == 0:
                async for result in model.embed_stream(iter(IMAGES), ordered=dice.random() < 0.5):
                    if result.key == 3:
                        break
            else:
                await model.forward(dice.choice(IMAGES))
        except (ImageDecodeError, ForwardTimeout):
            continue


async def wait_idle(model: ImageEmbeddings) -> None:
    """Wait for streams that were left half read: they stop at the loop's next turn."""
    with anyio.fail_after(30):
        while model.statistics().pending:
            await checkpoint()


@pytest.mark.slow
async def test_a_short_soak_leaves_memory_descriptors_and_threads_where_they_were() -> None:
    """`benchmarks/soak.py` does it for a quarter of an hour."""
    process = psutil.Process()
    held: list[tuple[int, int, int]] = []
    async with ImageEmbeddings(TINY_IMAGE) as model:
        for spell in range(6):
            async with anyio.create_task_group() as tasks:
                for seed in range(16):
                    tasks.start_soon(misuse, model, 16 * spell + seed)
            await wait_idle(model)
            gc.collect()
            held.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
            assert model.state.queue_depth == 0
    memory, descriptors, threads = zip(*held, strict=True)
    assert max(memory[3:]) - max(memory[:3]) < 5e6
    assert max(descriptors[3:]) <= max(descriptors[:3])
    assert max(threads[3:]) <= max(threads[:3]) + 3  # idle workers come and go
