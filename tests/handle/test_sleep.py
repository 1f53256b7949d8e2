"""Unused models sleep, and wake at the next call."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Status, Threads
from aioembed._packed import PackedFolder
from aioembed.errors import AioembedError, InvalidConfig, ModelClosed
from aioembed.state import ModelState

from ..programs import TINY_IMAGE_PROGRAM
from .conftest import Brake, LivingPrograms

pytestmark = pytest.mark.anyio

_PROGRAM = Path(__file__).resolve().parents[1] / "programs/tiny_clip_image.pte"
_SOON = 0.02


def make(idle_timeout: float | None = _SOON, **options: Any) -> ImageEmbeddings:
    return ImageEmbeddings(_PROGRAM, idle_timeout=idle_timeout, threads=1, **options)


def asleep(state: ModelState) -> bool:
    return state.is_asleep


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a process that has loaded the program and packed its weights."""
    cache = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aioembed._packed._SMALL", 0)
        anyio.run(make(None, cache_dir=cache).load)
    return cache


@pytest.fixture
def packed_cache(packed_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the program's packed weights, though it is small."""
    monkeypatch.setattr("aioembed._packed._SMALL", 0)
    return shutil.copytree(packed_once, tmp_path / "cache")


@pytest.fixture
async def model() -> AsyncIterator[ImageEmbeddings]:
    async with make() as made:
        yield made


async def test_an_unused_model_is_unloaded_and_the_next_call_wakes_it(
    pixels: NDArray[np.uint8], programs: LivingPrograms
) -> None:
    async with make() as model:
        expected = await model.forward(pixels)
        for _ in range(3):
            state = await model.wait_for(asleep)
            assert (state.status, state.is_ready) == (Status.IDLE, False)
            with anyio.fail_after(30):
                while programs.count:  # noqa: ASYNC110  # freeing is no event
                    await anyio.sleep(0.01)
            np.testing.assert_array_equal(await model.forward(pixels), expected)
            assert not model.state.is_asleep
    assert not model.state.is_asleep


async def test_the_moves_of_falling_asleep_and_waking_are_observed(
    pixels: NDArray[np.uint8],
) -> None:
    model, seen = make(), []
    model.subscribe(lambda: seen.append((str(model.state.status), model.state.is_asleep)))
    async with model:
        await model.wait_for(asleep)
        await model.forward(pixels)
        await model.wait_for(asleep)
    moves = [move for place, move in enumerate(seen) if not place or seen[place - 1] != move]
    assert moves == [
        ("loading", False),
        ("ready", False),
        ("idle", True),
        ("loading", False),
        ("ready", False),
        ("generating", False),
        ("ready", False),
        ("idle", True),
        ("closed", False),
    ]


async def test_a_storm_of_calls_wakes_a_model_once(
    model: ImageEmbeddings, pixels: NDArray[np.uint8]
) -> None:
    expected = await model.forward(pixels)
    await model.wait_for(asleep)
    loads: list[Status] = []
    model.subscribe(lambda: loads.append(model.state.status))
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            np.testing.assert_array_equal(await model.forward(pixels), expected)

        for _ in range(100):
            tasks.start_soon(call)
    begun = [new for old, new in zip([Status.IDLE, *loads], loads, strict=False) if old is not new]
    assert begun.count(Status.LOADING) == 1


async def test_waiting_for_ready_wakes_a_model(model: ImageEmbeddings) -> None:
    await model.wait_for(asleep)
    assert (await model.wait_for("ready")).status is Status.READY


async def test_a_load_wakes_a_model(model: ImageEmbeddings) -> None:
    await model.wait_for(asleep)
    await model.load()
    assert model.state.is_ready


async def test_space_and_dimension_stay_known_while_a_model_sleeps(model: ImageEmbeddings) -> None:
    await model.load()
    known = (model.space, model.embedding_dim, model.metadata)
    await model.wait_for(asleep)
    assert (model.space, model.embedding_dim, model.metadata) == known


async def test_streams_and_batches_wake_a_model(
    model: ImageEmbeddings, pixels: NDArray[np.uint8]
) -> None:
    await model.wait_for(asleep)
    assert (await model.forward_batch([pixels] * 3)).shape[0] == 3

    async def slowly() -> AsyncIterator[NDArray[np.uint8]]:
        for _ in range(2):
            await model.wait_for(asleep)
            yield pixels

    results = [result async for result in model.embed_stream(slowly())]
    assert len(results) == 2


async def test_a_model_in_use_does_not_sleep(pixels: NDArray[np.uint8]) -> None:
    async with make(idle_timeout=0.2) as model:
        seen: list[bool] = []
        await model.load()
        model.subscribe(lambda: seen.append(model.state.is_asleep))
        with anyio.move_on_after(0.6):
            while True:
                await model.forward(pixels)
                await anyio.sleep(0.01)
        assert not any(seen)


async def test_a_cancelled_wake_leaves_the_model_asleep(pixels: NDArray[np.uint8]) -> None:
    model = make()
    await model.load()
    await model.wait_for(asleep)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await model.forward(pixels)
    await model.wait_for(asleep)
    assert (await model.forward(pixels)).shape
    await model.aclose()


async def test_closing_a_sleeping_model_closes_it(pixels: NDArray[np.uint8]) -> None:
    model = make()
    await model.load()
    await model.wait_for(asleep)
    await model.aclose()
    assert (model.state.status, model.state.is_asleep) == (Status.CLOSED, False)
    with pytest.raises(ModelClosed):
        await model.forward(pixels)
    await model.load()
    assert model.state.is_ready
    await model.aclose()


async def test_closing_while_a_model_falls_asleep_frees_it(
    pixels: NDArray[np.uint8], programs: LivingPrograms
) -> None:
    for _ in range(10):
        async with make() as model:
            await model.forward(pixels)
            await model.wait_for(asleep)
        assert not programs.count


async def test_a_wake_that_fails_is_the_error_of_the_call(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    program = tmp_path / "program.pte"
    program.write_bytes(_PROGRAM.read_bytes())
    async with ImageEmbeddings(program, idle_timeout=_SOON, threads=1) as model:
        await model.forward(pixels)
        await model.wait_for(asleep)
        program.unlink()
        with pytest.raises(AioembedError):
            await model.forward(pixels)
        assert (model.state.status, model.state.is_asleep) == (Status.FAILED, False)


async def test_a_program_replaced_while_the_model_sleeps_is_the_one_that_wakes(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    """Nothing of the old one is kept: vectors and space are those of the new one."""
    async with ImageEmbeddings(TINY_IMAGE_PROGRAM, threads=1) as other:
        expected, space = await other.forward(pixels), other.space_id
    program, replacement = tmp_path / "program.pte", tmp_path / "replacement.pte"
    shutil.copyfile(_PROGRAM, program)
    shutil.copyfile(TINY_IMAGE_PROGRAM, replacement)
    async with ImageEmbeddings(program, threads=1) as model:
        await model.forward(pixels)
        await model.sleep()
        replacement.replace(program)
        np.testing.assert_array_equal(await model.forward(pixels), expected)
        assert model.space_id == space


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_by_default_a_model_never_sleeps(pixels: NDArray[np.uint8]) -> None:
    async with make(idle_timeout=None) as model:
        await model.forward(pixels)
        await anyio.sleep(0.1)
        assert model.state.is_ready


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_timer_does_not_delay_the_end_of_the_event_loop(backend: str) -> None:
    async def main() -> None:
        model = make(idle_timeout=3600)
        await model.load()

    anyio.run(main, backend=backend)


def test_a_model_that_slept_on_a_loop_that_ended_wakes_on_another(
    pixels: NDArray[np.uint8],
) -> None:
    model = make()

    async def first() -> NDArray[np.float32]:
        await model.load()
        vector = await model.forward(pixels)
        await model.wait_for(asleep)
        return vector

    async def second() -> NDArray[np.float32]:
        vector = await model.forward(pixels)
        await model.aclose()
        return vector

    np.testing.assert_array_equal(anyio.run(first), anyio.run(second))


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_timeout_that_is_not_above_zero_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidConfig, match="idle_timeout must be a number"):
        make(idle_timeout=wrong)


async def test_a_model_is_put_to_sleep_by_hand(pixels: NDArray[np.uint8]) -> None:
    model = make(None)
    await model.sleep()
    assert (model.state.status, model.state.is_asleep) == (Status.IDLE, False)
    async with model:
        expected = await model.forward(pixels)
        await model.sleep()
        assert model.state.is_asleep
        await model.sleep()
        np.testing.assert_array_equal(await model.forward(pixels), expected)
    await model.sleep()
    assert model.state.status is Status.CLOSED


async def test_a_model_in_use_is_put_to_sleep_when_its_calls_have_ended(
    pixels: NDArray[np.uint8], inference: Brake
) -> None:
    async with make(None) as model:
        expected = await model.forward(pixels)
        ended: list[str] = []

        async def call(name: str) -> None:
            np.testing.assert_array_equal(await model.forward(pixels), expected)
            ended.append(name)

        async def sleep() -> None:
            await model.sleep()
            ended.append("asleep")

        inference.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "running")
            await model.wait_for("generating")
            tasks.start_soon(sleep)
            await checkpoint()
            tasks.start_soon(call, "waiting")
            await model.wait_for(lambda state: state.queue_depth == 2)
            assert model.state.is_generating
            inference.release()
        assert ended in (["running", "asleep", "waiting"], ["asleep", "running", "waiting"])


async def test_a_model_whose_call_was_cancelled_sleeps_when_its_run_has_ended(
    pixels: NDArray[np.uint8], inference: Brake
) -> None:
    async with make(None) as model:
        await model.load()
        inference.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, pixels)
            await model.wait_for("generating")
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.sleep)
            await checkpoint()
            assert model.state.is_generating
            inference.release()
        assert model.state.is_asleep


async def test_closing_ends_a_sleep_that_waits(pixels: NDArray[np.uint8], inference: Brake) -> None:
    async with anyio.create_task_group() as tasks, make(None) as model:
        await model.load()
        inference.hold()
        tasks.start_soon(model.forward, pixels)
        await model.wait_for("generating")
        tasks.start_soon(model.sleep)
        await checkpoint()
        tasks.start_soon(model.aclose)
        await checkpoint()
        inference.release()
    assert model.state.status is Status.CLOSED


async def test_auto_lets_models_sleep_that_wake_in_milliseconds(
    pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioembed.options._AUTO_IDLE_SECONDS", _SOON)
    async with ImageEmbeddings(_PROGRAM, idle_timeout="auto", threads=1) as model:
        await model.forward(pixels)
        await model.wait_for(asleep)
    monkeypatch.setattr("aioembed._packed._SMALL", 0)
    options: dict[str, Any] = {"idle_timeout": "auto", "threads": 1, "packed_weights": False}
    async with ImageEmbeddings(_PROGRAM, **options) as model:
        await model.forward(pixels)
        await anyio.sleep(5 * _SOON)
        assert model.state.is_ready


async def test_verifying_always_finds_damage_that_keeps_size_and_time(
    pixels: NDArray[np.uint8],
    packed_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with make(None, cache_dir=packed_cache, verify="always") as model:
        expected = await model.forward(pixels)
        (file,) = (packed_cache / ".packed").glob("*.weights")
        await model.sleep()
        status, content = file.stat(), bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        np.testing.assert_array_equal(await model.forward(pixels), expected)
    assert "is damaged or not recorded; it is made again" in caplog.text


@pytest.mark.parametrize("wrong", ["never", True, None])
def test_an_unknown_value_of_verify_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidConfig, match="verify is"):
        make(verify=wrong)


async def test_packed_weights_change_no_vector(
    pixels: NDArray[np.uint8],
    packed_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vectors = []
    for packed in (False, True):
        async with make(packed_weights=packed, cache_dir=packed_cache) as model:
            vectors.append(await model.forward(pixels))
            await model.wait_for(asleep)
            vectors.append(await model.forward(pixels))
    assert len(await anyio.to_thread.run_sync(PackedFolder(packed_cache).records)) == 1
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]
    for vector in vectors:
        np.testing.assert_array_equal(vector, vectors[0])


async def test_copies_share_packed_weights(pixels: NDArray[np.uint8], packed_cache: Path) -> None:
    options = partial(ImageEmbeddings, _PROGRAM, cache_dir=packed_cache)
    async with options(threads=1) as one, options(threads=Threads(replicas=3)) as three:
        expected = await one.forward(pixels)
        rows = await three.forward_batch([pixels] * 12)
    for row in rows:
        np.testing.assert_array_equal(row, expected)
    (record,) = await anyio.to_thread.run_sync(PackedFolder(packed_cache).records)
    links_count_once = await anyio.to_thread.run_sync(PackedFolder(packed_cache).total_size)
    assert record.size <= links_count_once < 2 * record.size
