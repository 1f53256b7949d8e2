"""The handles without a model: what holds of the handles holds of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed import ImageEmbeddings, Queueing, Status, TextEmbeddings
from aioembed.errors import (
    ForwardTimeout,
    InvalidUserInput,
    ModelBusy,
    ModelClosed,
    ModelNotLoaded,
    ResourceError,
)
from aioembed.state import LEGAL_MOVES
from aioembed.testing import ImageEmbeddingsStandIn, TextEmbeddingsStandIn

pytestmark = pytest.mark.anyio

_PROGRAM = Path(__file__).parent / "programs/tiny_clip_image.pte"
_PIXELS = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)

Make = Callable[..., ImageEmbeddings]


@pytest.fixture(params=["stand-in", "program"])
def make(request: pytest.FixtureRequest) -> Make:
    """Make a handle of either kind."""
    if request.param == "stand-in":
        return ImageEmbeddingsStandIn
    return lambda **options: ImageEmbeddings(_PROGRAM, threads=1, **options)


async def test_a_life_has_the_same_moves(make: Make) -> None:
    model, seen = make(), [Status.IDLE]

    def note() -> None:
        if seen[-1] is not model.state.status:
            seen.append(model.state.status)

    model.subscribe(note)
    async with model:
        vector = await model.forward(_PIXELS)
    S = Status  # noqa: N806
    assert seen == [S.IDLE, S.LOADING, S.READY, S.GENERATING, S.READY, S.CLOSED]
    assert all(new in LEGAL_MOVES[old] for old, new in pairwise(seen))
    assert vector.dtype == np.float32
    assert vector.shape == (model.spec.embedding_dim or 0,) or vector.ndim == 1
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


async def test_equal_items_have_equal_vectors_and_others_do_not(make: Make) -> None:
    async with make() as model:
        first, again = await model.forward(_PIXELS), await model.forward(_PIXELS.copy())
        other = await model.forward(255 - _PIXELS)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


async def test_a_call_before_a_load_and_after_a_close_is_refused(make: Make) -> None:
    model = make()
    with pytest.raises(ModelNotLoaded):
        await model.forward(_PIXELS)
    await model.load()
    await model.aclose()
    with pytest.raises(ModelClosed):
        await model.forward(_PIXELS)
    await model.load()
    assert (await model.forward(_PIXELS)).ndim == 1
    await model.aclose()


async def test_batches_and_streams_give_what_single_calls_give(make: Make) -> None:
    images = [np.roll(_PIXELS, shift, axis=1) for shift in range(5)]
    async with make() as model:
        single = [await model.forward(image) for image in images]
        np.testing.assert_allclose(await model.forward_batch(images), single, atol=1e-5)
        results = [result async for result in model.embed_stream(images)]
    assert [result.key for result in results] == list(range(5))


async def test_a_model_that_nobody_uses_sleeps(make: Make) -> None:
    async with make(idle_timeout=0.02) as model:
        expected = await model.forward(_PIXELS)
        await model.wait_for(lambda state: state.is_asleep)
        np.testing.assert_array_equal(await model.forward(_PIXELS), expected)


async def test_delays_meet_timeouts_and_limits() -> None:
    async with ImageEmbeddingsStandIn(queueing=Queueing(max_pending=2)) as model:
        model.delay = 30
        with pytest.raises(ForwardTimeout):
            await model.forward(b"slow", timeout=0.01)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, b"one")
            tasks.start_soon(model.forward, b"two")
            await model.wait_for(lambda state: state.queue_depth == 2)
            with pytest.raises(ModelBusy):
                await model.forward(b"three")
            tasks.cancel_scope.cancel()
        model.delay = 0


async def test_a_load_fails_with_the_error_that_was_set_and_the_next_one_works() -> None:
    model = ImageEmbeddingsStandIn()
    model.load_error = ResourceError("no network")
    with pytest.raises(ResourceError, match="no network"):
        await model.load()
    assert model.state.status is Status.FAILED
    model.load_error = None
    await model.load()
    assert model.state.is_ready
    await model.aclose()


async def test_a_download_can_be_watched() -> None:
    model = ImageEmbeddingsStandIn()
    model.downloads = True
    seen: list[Status] = []
    model.subscribe(lambda: seen.append(model.state.status))
    async with model:
        await model.wait_for("ready")
    assert Status.DOWNLOADING in seen


async def test_results_of_items_can_be_set() -> None:
    async with ImageEmbeddingsStandIn(embedding_dim=3) as model:
        model.set_result("https://example.org/cat.jpg", [3, 0, 4])
        model.set_result(b"broken", InvalidUserInput("not an image"))
        vector = await model.forward("https://example.org/cat.jpg")
        np.testing.assert_allclose(vector, [0.6, 0, 0.8], atol=1e-6)
        with pytest.raises(InvalidUserInput, match="not an image"):
            await model.forward(b"broken")
        with pytest.raises(InvalidUserInput, match="3 values"):
            model.set_result(b"other", [1, 2])
        assert model.items == ["https://example.org/cat.jpg", b"broken"]


@pytest.mark.parametrize("item", [None, 3, [1], object()])
async def test_a_value_that_is_not_an_image_is_refused(item: Any) -> None:
    async with ImageEmbeddingsStandIn() as model:
        with pytest.raises(InvalidUserInput):
            await model.forward(item)
        assert model.state.is_ready


async def test_texts_have_a_stand_in_too() -> None:
    async with TextEmbeddingsStandIn(embedding_dim=8) as model:
        assert isinstance(model, TextEmbeddings)
        vector = await model.forward("a cat")
        np.testing.assert_array_equal(await model.forward("a cat", truncate="error"), vector)
        assert await model.count_tokens("a cat") == 2
        counts: list[int] = []
        await model.forward("a cat", on_tokens=counts.append)
        assert counts == [2]
        assert model.space == model.space
