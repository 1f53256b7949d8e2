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

from aioembed import GIST_512, ImageEmbeddings, Status
from aioembed.errors import ImageDecodeError

pytestmark = pytest.mark.anyio

CALLS = 500
IMAGES = [
    np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for number in range(8)
]
Vectors = list[NDArray[np.float32]]


async def storm(model: ImageEmbeddings, expected: Vectors, seed: int) -> None:
    """500 calls at once: a fifth is cancelled at a random moment, a tenth has a broken image."""
    dice = random.Random(seed)
    doomed = {place for place in range(CALLS) if dice.random() < 1 / 5}
    broken = {place for place in range(CALLS) if dice.random() < 1 / 10}
    ended: dict[int, str] = {}

    async def call(place: int) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                if place in doomed:
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
        assert ended[place] == right or (place in doomed and ended[place] == "cancelled")
    assert model.state.status is Status.READY
    assert model.state.queue_depth == 0


async def run_storms(seeds: range) -> list[int]:
    """Run them on one handle; return the memory in bytes after each."""
    memory = []
    async with ImageEmbeddings(GIST_512) as model:
        expected = [await model.forward(image) for image in IMAGES]
        tasks = len(anyio.get_running_tasks())
        for seed in seeds:
            await storm(model, expected, seed)
            assert len(anyio.get_running_tasks()) == tasks
            gc.collect()
            memory.append(psutil.Process().memory_info().rss)
            if seed == seeds[0]:
                threads = threading.active_count()
            assert threading.active_count() <= threads
        figures = model.statistics()
        assert figures.pending == 0
        assert figures.submitted == len(IMAGES) + CALLS * len(seeds)
        assert figures.submitted == figures.succeeded + figures.failed + figures.cancelled
    return memory


async def test_500_calls_with_cancellations_and_broken_images_all_end_right() -> None:
    await run_storms(range(2))


@pytest.mark.slow
async def test_20_such_storms_leave_no_task_thread_or_memory_behind() -> None:
    memory = await run_storms(range(20))
    assert memory[-1] - memory[4] < 10e6


@pytest.mark.slow
async def test_a_long_stream_of_generated_images_has_flat_memory() -> None:
    memory: list[int] = []
    async with ImageEmbeddings(GIST_512) as model:
        async for result in model.embed_stream(IMAGES[number % 8] for number in range(2000)):
            if result.key % 250 == 249:
                gc.collect()
                memory.append(psutil.Process().memory_info().rss)
        assert model.statistics().succeeded == 2000
    assert max(memory[4:]) - max(memory[:4]) < 3e6
