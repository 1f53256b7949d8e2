"""Many models in bounded memory: loaded when called; only unused ones sleep to make room."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint

from aioembed import ImageEmbeddings, ModelPool, Preprocessing, Status
from aioembed.errors import (
    ImageDecodeError,
    InvalidConfig,
    ModelClosed,
    ModelFileUnreadable,
    ModelTooLarge,
    UnknownModel,
    WrongEventLoop,
)
from aioembed.testing import ImageEmbeddingsStandIn, TextEmbeddingsStandIn

from .handle.conftest import LivingPrograms, programs
from .programs import TINY_IMAGE, TINY_IMAGE_PROGRAM

__all__ = ["programs"]

pytestmark = pytest.mark.anyio

_SIZE = TINY_IMAGE_PROGRAM.stat().st_size
_CALLS, _CALLERS = 2000, 32
_IMAGES = [
    np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for number in range(4)
]


def real_models(count: int, **options: Any) -> dict[str, ImageEmbeddings]:
    """Return models that give different vectors for the same image."""
    models = {}
    for number in range(count):
        preprocessing = Preprocessing(
            height=32,
            width=32,
            resize="stretch",
            interpolation="bilinear",
            antialias=False,
            mean=(number / 10, 0.5, 1 - number / 10),
        )
        models[f"model {number}"] = ImageEmbeddings(
            TINY_IMAGE, preprocessing=preprocessing, threads=1, **options
        )
    return models


def stand_in(memory: int = 100, **options: Any) -> ImageEmbeddingsStandIn:
    made = ImageEmbeddingsStandIn(embedding_dim=8, **options)
    made.memory = memory
    return made


def pool_of(names: str, max_memory: int, **options: Any) -> ModelPool[ImageEmbeddingsStandIn]:
    return ModelPool({name: stand_in() for name in names}, max_memory=max_memory, **options)


def awake(pool: ModelPool[Any]) -> str:
    return "".join(name for name, state in pool.state.items() if state.is_ready)


# --- the storm


async def storm(pool: ModelPool[ImageEmbeddings], expected: dict[str, Any]) -> int:
    """Call random models, some with a broken image, some cancelled; return how many vectors."""
    dice = random.Random(23)
    calls = iter(range(_CALLS))
    right = 0

    async def caller() -> None:
        for _ in calls:
            name, image = dice.choice(list(pool)), dice.randrange(len(_IMAGES))
            if dice.random() < 0.05:
                with pytest.raises(ImageDecodeError):
                    await pool[name].forward(b"broken")
            elif dice.random() < 0.1:
                await cancelled(name, dice.randrange(50))
            else:
                await call(name, image)

    async def call(name: str, image: int) -> None:
        nonlocal right
        vector = await pool[name].forward(_IMAGES[image])
        assert np.array_equal(vector, expected[name][image])
        right += 1

    async def cancelled(name: str, turns: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool[name].forward, _IMAGES[0])
            for _ in range(turns):
                await checkpoint()
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(_CALLERS):
            tasks.start_soon(caller)
    return right


async def test_a_storm_of_calls_over_six_models_with_memory_for_two(
    programs: LivingPrograms,
) -> None:
    models = real_models(6)
    expected = {}
    for name, model in models.items():
        async with model:
            expected[name] = [await model.forward(image) for image in _IMAGES]
    programs.most = 0
    sums: list[int] = []
    with anyio.fail_after(120):
        async with ModelPool(models, max_memory=2 * _SIZE + 1) as pool:
            end = pool.subscribe(lambda: sums.append(sum(pool.memory.values())))
            running = len(anyio.get_running_tasks())
            right = await storm(pool, expected)
            assert right > _CALLS * 0.8
            assert not any(state.queue_depth for state in pool.state.values())
            assert len(anyio.get_running_tasks()) <= running + 1  # a model may fall asleep
            end()
        assert (programs.count, programs.most) == (0, 2)
        assert max(sums) == 2 * _SIZE
        assert not pool.memory
        assert {state.status for state in pool.state.values()} == {Status.CLOSED}


# --- loading when called


async def test_a_model_is_loaded_by_its_first_call() -> None:
    async with pool_of("ab", 200) as pool:
        assert (pool.state["a"].status, pool.state["a"].is_asleep) == (Status.IDLE, True)
        assert not pool.memory
        assert (await pool["a"].forward(b"item")).shape == (8,)
        assert awake(pool) == "a"
        assert dict(pool.memory) == {"a": 100}


async def test_load_wait_for_batches_and_streams_load_a_model_too() -> None:
    async with pool_of("abcd", 400) as pool:
        await pool["a"].load()
        await pool["b"].wait_for("ready")
        assert (await pool["c"].forward_batch([b"item"])).shape == (1, 8)
        assert len([result async for result in pool["d"].embed_stream([b"one", b"two"])]) == 2
        assert awake(pool) == "abcd"


async def test_models_are_preloaded_in_their_order() -> None:
    async with pool_of("abc", 200, preload="ca") as pool:
        await pool["a"].wait_for(lambda state: state.is_ready)
        assert awake(pool) == "ac"
        assert list(pool.memory) == ["c", "a"]


async def test_image_and_text_models_share_a_pool() -> None:
    text = TextEmbeddingsStandIn(embedding_dim=8)
    text.memory = 100
    image = stand_in()
    models: dict[str, ImageEmbeddingsStandIn | TextEmbeddingsStandIn]
    models = {"image": image, "text": text}
    async with ModelPool(models, max_memory=100) as pool:
        await image.forward(b"item")
        await text.forward("item")
        assert list(pool.memory) == ["text"]


# --- who sleeps


async def test_the_least_recently_used_model_sleeps_first() -> None:
    async with pool_of("abc", 200) as pool:
        for name in "ab":
            await pool[name].forward(b"item")
        await pool["a"].forward(b"item")
        await pool["c"].forward(b"item")
        assert awake(pool) == "ac"
        assert pool.state["b"].is_asleep
        await pool["b"].forward(b"item")
        assert awake(pool) == "bc"


async def test_as_many_sleep_as_the_next_one_needs() -> None:
    models = {"a": stand_in(), "b": stand_in(), "c": stand_in(), "large": stand_in(250)}
    async with ModelPool(models, max_memory=350) as pool:
        for name in "abc":
            await pool[name].forward(b"item")
        await pool["large"].forward(b"item")
        assert dict(pool.memory) == {"c": 100, "large": 250}


async def test_a_model_in_use_is_not_put_to_sleep() -> None:
    async with pool_of("abc", 200) as pool:
        for name in "ab":
            await pool[name].forward(b"item")
        pool["a"].delay = 30
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool["a"].forward, b"long")
            await pool["a"].wait_for("generating")
            await pool["b"].forward(b"used later")
            await pool["c"].forward(b"item")
            assert pool.state["a"].is_generating
            assert pool.state["b"].is_asleep
            tasks.cancel_scope.cancel()


async def test_where_all_are_in_use_the_running_calls_end_first() -> None:
    """New calls of the model that gives way wait for its next turn."""
    ended = []
    async with pool_of("ab", 100) as pool:
        await pool["a"].load()
        pool["a"].delay = 0.05

        async def call(name: str, item: bytes) -> None:
            await pool[name].forward(item)
            ended.append(item)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "a", b"first")
            await pool["a"].wait_for("generating")
            tasks.start_soon(call, "b", b"second")
            await pool["b"].wait_for("loading")
            tasks.start_soon(call, "a", b"third")
        assert ended == [b"first", b"second", b"third"]


async def test_a_busy_model_does_not_starve_another() -> None:
    """With memory for one, a model whose queue never empties takes turns with the other."""
    async with pool_of("ab", 100) as pool:
        pool["a"].delay = 0.001
        done = anyio.Event()
        calls = 0

        async def keep_busy() -> None:
            nonlocal calls
            while not done.is_set():
                await pool["a"].forward(b"item")
                calls += 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(keep_busy)
                await pool["a"].wait_for("generating")
                for _ in range(20):
                    before = calls
                    await pool["b"].forward(b"item")
                    await pool["a"].wait_for("generating")
                    assert calls - before < 1000
                done.set()


async def test_waking_models_are_observed_as_such() -> None:
    async with pool_of("a", 100) as pool:
        seen: list[tuple[Status, bool, bool]] = []

        def note() -> None:
            state = pool.state["a"]
            seen.append((state.status, state.is_asleep, state.is_waking))

        pool.subscribe(note)
        await pool["a"].load()
        await pool["a"].sleep()
        await pool["a"].load()
    moves = [move for place, move in enumerate(seen) if not place or seen[place - 1] != move]
    wake = [(Status.LOADING, False, True), (Status.READY, False, False)]
    first = [(Status.IDLE, True, False)]
    assert moves[-6:] == [*wake, *first, *wake, (Status.CLOSED, False, False)]


async def test_the_mapping_of_states_is_one_object_until_something_changes() -> None:
    async with pool_of("ab", 200) as pool:
        before = pool.state
        assert pool.state is before
        await pool["a"].load()
        assert pool.state is not before
        assert pool.state["b"] is before["b"]
        assert [len(pool), list(pool), pool.max_memory] == [2, ["a", "b"], 200]
        with pytest.raises(TypeError):
            pool.state["a"] = before["a"]  # type: ignore[index]


# --- faults


async def test_a_failed_load_gives_its_memory_back() -> None:
    async with pool_of("ab", 100) as pool:
        pool["a"].load_error = InvalidConfig("broken")
        for _ in range(2):
            with pytest.raises(InvalidConfig, match="broken"):
                await pool["a"].load()
            assert not pool.memory
        await pool["b"].forward(b"item")
        assert pool.state["a"].status is Status.FAILED


async def test_a_deleted_program_fails_its_own_calls_only(tmp_path: Path) -> None:
    program = tmp_path / "gone.pte"
    program.write_bytes(TINY_IMAGE_PROGRAM.read_bytes())
    gone = ImageEmbeddings(program, threads=1)
    (other,) = real_models(1).values()
    async with ModelPool({"gone": gone, "other": other}, max_memory=_SIZE):
        await gone.forward(_IMAGES[0])
        await other.forward(_IMAGES[0])
        program.unlink()
        with pytest.raises(ModelFileUnreadable):
            await gone.forward(_IMAGES[0])
        await other.forward(_IMAGES[0])


async def test_a_model_larger_than_the_pool_is_refused() -> None:
    models = {"small": stand_in(100), "large": stand_in(101)}
    async with ModelPool(models, max_memory=100) as pool:
        with pytest.raises(ModelTooLarge, match="101 bytes, more than the pool's 100"):
            await pool["large"].forward(b"item")
        await pool["small"].forward(b"item")


async def test_a_call_that_is_cancelled_while_it_waits_for_memory_leaves_the_queue() -> None:
    async with pool_of("abc", 100) as pool:
        await pool["a"].load()
        pool["a"].delay = 0.1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool["a"].forward, b"long")
            await pool["a"].wait_for("generating")
            for name in "bc":
                with anyio.move_on_after(0.01):
                    await pool[name].forward(b"never")
            tasks.cancel_scope.cancel()
        await pool["c"].forward(b"item")
        assert dict(pool.memory) == {"c": 100}
        assert pool.state["b"].is_asleep


async def test_closing_refuses_what_waits_for_memory_and_frees_all() -> None:
    errors: list[BaseException] = []

    async def call(name: str) -> None:
        try:
            await pool[name].forward(b"item")
        except ModelClosed as error:
            errors.append(error)

    pool = pool_of("abcdef", 100)
    async with anyio.create_task_group() as tasks, pool:
        pool["a"].delay = 30
        tasks.start_soon(call, "a")
        await pool["a"].wait_for("generating")
        for name in "bcdef":
            tasks.start_soon(call, name)
            await pool[name].wait_for("loading")
    assert len(errors) == 5
    assert not pool.memory
    with pytest.raises(ModelClosed):
        await pool["a"].forward(b"item")


async def test_a_pool_can_be_entered_again() -> None:
    pool = pool_of("ab", 100)
    for _ in range(2):
        async with pool:
            with pytest.raises(InvalidConfig, match="in use by another"):
                await pool.__aenter__()
            for name in "ab":
                await pool[name].forward(b"item")
        assert not pool.memory
    await pool.aclose()


async def test_two_pools_each_keep_to_their_own_memory_and_share_no_model() -> None:
    first, second = pool_of("ab", 100), pool_of("ab", 200)
    shared = ModelPool({"a": first["a"]}, max_memory=100)
    async with first, second:
        for name in "ab":
            await first[name].forward(b"item")
            await second[name].forward(b"item")
        assert (dict(first.memory), dict(second.memory)) == ({"b": 100}, {"a": 100, "b": 100})
        with pytest.raises(InvalidConfig, match="in a pool already"):
            await shared.__aenter__()
        await first["a"].forward(b"item")
    async with shared:
        await shared["a"].forward(b"item")


async def test_a_model_that_is_loaded_already_is_refused() -> None:
    async with stand_in() as model:
        await model.load()
        with pytest.raises(InvalidConfig, match="loaded already"):
            await ModelPool({"a": model}, max_memory=100).__aenter__()
        await model.forward(b"item")


async def test_models_of_a_pool_may_sleep_by_their_own_timeout() -> None:
    model = stand_in(idle_timeout=0.02)
    async with ModelPool({"a": model}, max_memory=100) as pool:
        await model.forward(b"item")
        await model.wait_for(lambda state: state.is_asleep)
        with anyio.fail_after(30):
            while pool.memory:
                await checkpoint()
        await model.forward(b"item")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_model_of_a_pool_belongs_to_the_event_loop_of_the_pool() -> None:
    async with pool_of("a", 100) as pool:

        def elsewhere() -> None:
            with pytest.raises(WrongEventLoop):
                anyio.run(pool["a"].forward, b"item")

        await anyio.to_thread.run_sync(elsewhere)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1 GB", True, None])
def test_memory_that_is_not_a_positive_number_of_bytes_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidConfig, match="max_memory must be"):
        pool_of("a", wrong)


@pytest.mark.parametrize("wrong", [{}, [], None, {"": stand_in()}, {1: stand_in()}, {"a": "clip"}])
def test_models_that_are_not_a_mapping_of_names_to_handles_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidConfig):
        ModelPool(wrong, max_memory=1)


def test_one_handle_under_two_names_is_refused() -> None:
    model = stand_in()
    with pytest.raises(InvalidConfig, match="one handle"):
        ModelPool({"a": model, "b": model}, max_memory=1)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="known are a, b"):
        pool_of("ab", 100)["c"]
    with pytest.raises(UnknownModel, match="known are a, b"):
        pool_of("ab", 100, preload="c")


_COUNTED = """
import sys
import anyio, numpy
from aioembed import ImageEmbeddings, ModelPool

async def main():
    models = {name: ImageEmbeddings() for name in "ab"}
    for most in (100_000_000, 20_000_000):
        async with ModelPool(models, max_memory=most) as pool:
            await models["a"].load()
            print(pool.memory["a"])
            await models["b"].forward(numpy.zeros((8, 8, 3), numpy.uint8))
            with anyio.fail_after(30):
                while "a" in pool.memory:
                    await anyio.sleep(0.01)
            print(*pool.memory)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process takes")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_model_counts_for_the_memory_that_it_needs_to_run(backend: str) -> None:
    """The program that ships is a file of 4 MB, and needs ten times that to compute.

    In a process that nothing else has filled: a model may use again what others have freed.
    """
    command = [sys.executable, "-c", _COUNTED, backend]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    counted, left, capped, left_again = done.stdout.split()
    assert 40_000_000 < int(counted) < 90_000_000
    assert int(capped) == 20_000_000
    assert left == left_again == "b"
