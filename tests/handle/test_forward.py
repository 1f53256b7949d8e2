"""Calls of forward: concurrent, cancelled, refused, with bad input."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from numpy.typing import NDArray
from PIL import Image

from aioembed import ImageEmbeddings, Queueing, Status
from aioembed.errors import InvalidUserInput, ModelBusy

from ..programs import TINY_IMAGE
from .conftest import Brake

pytestmark = pytest.mark.anyio
Pixels = NDArray[np.uint8]


def numbered(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("seed", range(3))
async def test_200_concurrent_calls_with_a_third_cancelled_end_correctly(seed: int) -> None:
    dice = random.Random(seed)
    got: dict[int, NDArray[np.float32]] = {}
    async with ImageEmbeddings(TINY_IMAGE) as model:
        expected = {number: await model.forward(numbered(number)) for number in range(8)}

        async def call(place: int, cancelled: bool) -> None:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    if cancelled:
                        tasks.start_soon(cancel_soon, scope, dice.randrange(200))
                    got[place] = await model.forward(numbered(place % 8))

        async def cancel_soon(scope: anyio.CancelScope, turns: int) -> None:
            for _ in range(turns):
                await checkpoint()
            scope.cancel()

        cancelled = [dice.random() < 1 / 3 for _ in range(200)]
        async with anyio.create_task_group() as tasks:
            for place in range(200):
                tasks.start_soon(call, place, cancelled[place])
        assert {place for place in range(200) if not cancelled[place]} <= set(got)
        for place, vector in got.items():
            np.testing.assert_array_equal(vector, expected[place % 8])
        assert model.state.status is Status.READY
        assert model.state.queue_depth == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_task_cancel_and_wait_for_leave_the_model_usable(inference: Brake) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        inference.hold()
        running = asyncio.create_task(model.forward(numbered(1)))
        await inference.wait_entered()
        waiting = asyncio.create_task(model.forward(numbered(2)))
        await anyio.wait_all_tasks_blocked()
        running.cancel()
        waiting.cancel()
        await asyncio.wait([waiting, running])
        assert waiting.cancelled()
        assert running.cancelled()
        assert model.state.is_generating
        inference.release()
        assert (await model.forward(numbered(3))).shape == (512,)


async def test_a_full_queue_says_so_and_serves_those_in_it(inference: Brake) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_pending=3)) as model:
        await model.load()
        inference.hold()
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(model.forward, numbered(number))
            await inference.wait_entered()
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ModelBusy, match="3 calls") as caught:
                await model.forward(numbered(4))
            assert (caught.value.code, caught.value.pending) == (104, 3)
            inference.release()
        assert (await model.forward(numbered(4))).shape == (512,)


async def test_of_two_calls_in_one_turn_the_second_is_refused() -> None:
    """The hook lets two calls of one tick through; here the second is refused."""
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_pending=1)) as model:
        await model.load()
        outcomes: list[str] = []

        async def call() -> None:
            try:
                await model.forward(numbered(1))
                outcomes.append("vector")
            except ModelBusy:
                outcomes.append("busy")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            tasks.start_soon(call)
        assert sorted(outcomes) == ["busy", "vector"]


@pytest.fixture
def bad_inputs(tmp_path: Path) -> dict[str, object]:
    """Everything that is not a usable image, by name."""
    good = tmp_path / "good.png"
    Image.fromarray(numbered(1)).save(good)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    return {
        "missing": tmp_path / "missing.jpg",
        "directory": tmp_path,
        "empty": tmp_path / "empty.jpg",
        "not an image": tmp_path / "text.jpg",
        "truncated": tmp_path / "cut.png",
        "float array": np.zeros((4, 4, 3), np.float32),
        "one axis": np.zeros(4, np.uint8),
        "five channels": np.zeros((4, 4, 5), np.uint8),
        "no pixels": np.zeros((0, 4, 3), np.uint8),
        "unknown scheme": "gopher://example.org/cat.jpg",
        "neither URI nor path nor base64": "what is this?",
        "empty bytes": b"",
        "a number": 42,
        "none": None,
    }


async def test_bad_input_is_a_typed_error_that_names_it_and_the_model_stays_ready(
    bad_inputs: dict[str, object],
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        for name, item in bad_inputs.items():
            with pytest.raises(InvalidUserInput) as caught:
                await model.forward(item)  # type: ignore[arg-type]
            assert len(str(caught.value)) > 20, name
            assert model.state.status is Status.READY, name
        assert (await model.forward(numbered(1))).shape == (512,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_an_unreadable_file_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.touch(mode=0)
    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(InvalidUserInput, match=r"secret\.png"):
            await model.forward(path)


async def test_every_kind_of_input_gives_the_same_vector(tmp_path: Path) -> None:
    import base64
    import io

    pixels = numbered(5)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    encoded = base64.b64encode(data).decode()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        expected = await model.forward(pixels)
        for item in (
            path,
            str(path),
            path.as_uri(),
            data,
            bytearray(data),
            Image.fromarray(pixels),
            f"data:image/png;base64,{encoded}",
            encoded,
        ):
            np.testing.assert_array_equal(await model.forward(item), expected)
