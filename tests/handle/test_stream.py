"""Streams and batches: keyed results, bounded memory, an error per bad item, clean stops."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from numpy.typing import NDArray

from aioembed import EmbeddingStream, Err, ImageEmbeddings, Ok, Queueing
from aioembed.errors import (
    AioembedError,
    BatchItemFailed,
    ImageDecodeError,
    InternalError,
    InvalidConfig,
    InvalidUserInput,
    ModelClosed,
    ModelFileUnreadable,
    ModelNotLoaded,
)

from ..programs import TINY_IMAGE
from .conftest import Brake

pytestmark = pytest.mark.anyio
Pixels = NDArray[np.uint8]


def numbered(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)


class Counted:
    """An endless input that records how far it was read, and whether it was closed."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = False

    def plain(self) -> Iterator[Pixels]:
        try:
            while True:
                self.read += 1
                yield numbered(self.read % 4)
        finally:
            self.closed = True

    async def asynchronous(self) -> AsyncIterator[Pixels]:
        try:
            while True:
                self.read += 1
                await checkpoint()
                yield numbered(self.read % 4)
        finally:
            self.closed = True


async def collect(stream: EmbeddingStream[Any]) -> list[Ok[Any] | Err[Any]]:
    async with stream as results:
        return [result async for result in results]


async def drain(stream: EmbeddingStream[Any], into: list[Any]) -> None:
    async for result in stream:
        into.append(result.key)  # noqa: PERF401  # what came before an error must be kept


@pytest.mark.parametrize("ordered", [True, False])
async def test_every_item_comes_back_under_its_index(ordered: bool) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        expected = [await model.forward(numbered(number)) for number in range(5)]
        items = [numbered(number % 5) for number in range(40)]
        results = await collect(model.embed_stream(items, ordered=ordered, concurrency=7))
        places = [result.key for result in results]
        assert (places if ordered else sorted(places)) == list(range(40))
        for result in results:
            assert isinstance(result, Ok)
            np.testing.assert_allclose(result.embedding, expected[result.key % 5], atol=1e-5)


async def test_a_bad_item_is_its_own_error_and_the_others_arrive() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        items: list[Any] = [numbered(1), b"junk", numbered(2), 42, numbered(3)]
        results = await collect(model.embed_stream(items))
        assert [type(result) for result in results] == [Ok, Err, Ok, Err, Ok]
        bad = results[1]
        assert isinstance(bad, Err)
        assert isinstance(bad.error, ImageDecodeError)
        assert (await model.forward(numbered(1))).shape == (512,)


@pytest.mark.parametrize(
    "foreign",
    [
        OverflowError("a file's"),
        UnicodeError("a URL's"),
        KeyError("x"),
        ExceptionGroup("g", [OSError()]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("ordered", [True, False])
async def test_an_unexpected_error_of_an_item_is_its_result(
    foreign: Exception, ordered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        def __fspath__(self) -> str:
            raise foreign

    async with ImageEmbeddings(TINY_IMAGE) as model:
        items: list[Any] = [numbered(1), Odd(), numbered(2)]
        results = await collect(model.embed_stream(items, ordered=ordered))
        by_place = {result.key: result for result in results}
        bad = by_place[1]
        assert isinstance(bad, Err)
        assert isinstance(bad.error, InternalError)
        assert bad.error.__cause__ is foreign
        assert type(foreign).__name__ in str(bad.error)
        assert foreign in [record.exc_info[1] for record in caplog.records if record.exc_info]
        assert isinstance(by_place[0], Ok)
        assert isinstance(by_place[2], Ok)
        with pytest.raises(BatchItemFailed) as caught:
            await model.forward_batch(items)
        assert caught.value.error.__cause__ is foreign


async def test_a_lack_of_memory_ends_the_stream() -> None:
    class Huge:
        def __fspath__(self) -> str:
            raise MemoryError

    async with ImageEmbeddings(TINY_IMAGE) as model:
        seen: list[int] = []
        items: list[Any] = [numbered(1), Huge(), numbered(2)]
        with pytest.raises(MemoryError):
            await drain(model.embed_stream(items), seen)
        assert seen == [0]


async def test_keyed_pairs_keep_their_keys_and_skipped_ones_are_never_read_as_images() -> None:
    pairs: list[tuple[str, Any]] = [
        ("a", numbered(1)),
        ("b", b"junk"),
        ("c", numbered(3)),
        ("d", b"junk"),
    ]
    async with ImageEmbeddings(TINY_IMAGE) as model:
        stream = model.embed_stream(pairs, keyed=True, skip={"b", "d"})
        assert [result.key for result in await collect(stream)] == ["a", "c"]


async def test_a_stream_is_resumed_after_a_stop_by_the_keys_that_were_read() -> None:
    items = {f"image {number}": numbered(number) for number in range(12)}
    done: dict[str, NDArray[np.float32]] = {}
    async with ImageEmbeddings(TINY_IMAGE) as model:
        for _ in range(2):
            stream = model.embed_stream(items.items(), keyed=True, ordered=False, skip=set(done))
            async with stream as results:
                async for result in results:
                    assert isinstance(result, Ok)
                    assert result.key not in done
                    done[result.key] = result.embedding
                    if len(done) == 5:
                        break
    assert done.keys() == items.keys()


async def test_items_that_are_not_pairs_end_the_stream_after_the_earlier_results() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        seen: list[str] = []
        items: list[Any] = [("a", numbered(1)), numbered(2)]
        with pytest.raises(InvalidUserInput, match=r"item 1 .* pair"):
            await drain(model.embed_stream(items, keyed=True), seen)
        assert seen == ["a"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_error_of_the_input_is_raised_after_the_earlier_results(ordered: bool) -> None:
    async def failing() -> AsyncIterator[Pixels]:
        for number in range(6):
            yield numbered(number)
        raise KeyError("the database went away")

    async with ImageEmbeddings(TINY_IMAGE) as model:
        seen: list[int] = []
        with pytest.raises(KeyError, match="database"):
            await drain(model.embed_stream(failing(), ordered=ordered), seen)
        assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_consumer_that_does_not_read_holds_the_input_back(kind: str, ordered: bool) -> None:
    source = Counted()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        async with model.embed_stream(
            getattr(source, kind)(), ordered=ordered, concurrency=5
        ) as results:
            while model.statistics().succeeded < 5:
                await checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert source.read == 5
            await anext(results)
            while model.statistics().succeeded < 6:
                await checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert source.read == 6
        assert source.closed
        assert model.state.queue_depth == 0


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_breaking_out_of_a_bare_loop_stops_the_stream(kind: str) -> None:
    source = Counted()

    async def read_three(model: ImageEmbeddings) -> None:
        async for result in model.embed_stream(getattr(source, kind)(), concurrency=4):
            if result.key == 2:
                break

    async with ImageEmbeddings(TINY_IMAGE) as model:
        await read_three(model)
        gc.collect()
        with anyio.fail_after(30):
            while not source.closed or model.state.queue_depth:
                await checkpoint()
        assert source.read <= 3 + 4
        assert (await model.forward(numbered(1))).shape == (512,)


async def test_aclose_returns_when_nothing_is_under_way(inference: Brake) -> None:
    source = Counted()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        async with aclosing(model.embed_stream(source.plain())) as results:
            await anext(results)
        assert source.closed
        assert model.state.queue_depth == 0
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_an_error_in_the_loop_is_raised_unchanged() -> None:
    async def body(model: ImageEmbeddings) -> None:
        async with model.embed_stream(Counted().plain()) as results:
            async for _ in results:
                raise LookupError("mine")

    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(LookupError, match="mine"):
            await body(model)


async def test_cancelling_the_consumer_stops_everything() -> None:
    source = Counted()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        with anyio.move_on_after(30) as scope:
            async with model.embed_stream(source.plain()) as results:
                async for result in results:
                    if result.key == 3:
                        scope.cancel()
        assert scope.cancelled_caught
        assert source.closed
        assert model.state.queue_depth == 0


@pytest.mark.parametrize("own_block", [True, False])
async def test_closing_the_handle_ends_its_streams_with_an_error(own_block: bool) -> None:
    outcome: list[str] = []

    async def consume(model: ImageEmbeddings, started: anyio.Event) -> None:
        stream = model.embed_stream(Counted().plain(), concurrency=2)
        try:
            if own_block:
                await stream.__aenter__()
            async for _ in stream:
                started.set()
        except ModelClosed:
            outcome.append("closed")
        finally:
            await stream.__aexit__(None, None, None)

    started = anyio.Event()
    async with anyio.create_task_group() as tasks, ImageEmbeddings(TINY_IMAGE) as model:
        tasks.start_soon(consume, model, started)
        await started.wait()
    assert outcome == ["closed"]


async def test_a_stream_that_nobody_reads_does_not_keep_the_handle_from_closing() -> None:
    source = Counted()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        stream = model.embed_stream(source.plain(), concurrency=2)
        await anext(stream)
    assert source.closed
    with pytest.raises(ModelClosed):
        await drain(stream, [])


async def test_a_load_that_failed_ends_the_stream_with_its_error(tmp_path: object) -> None:
    async with ImageEmbeddings(f"{tmp_path}/missing.pte") as model:
        with pytest.raises(ModelFileUnreadable):
            await collect(model.embed_stream([numbered(1)]))
    with pytest.raises(ModelNotLoaded):
        await collect(ImageEmbeddings(TINY_IMAGE).embed_stream([numbered(1)]))


async def test_a_handle_that_was_not_entered_has_streams_too() -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    await model.load()
    seen: list[int] = []
    await drain(model.embed_stream([numbered(1), numbered(2)]), seen)
    assert seen == [0, 1]
    assert len(await collect(model.embed_stream([numbered(1)]))) == 1
    await model.aclose()


async def test_a_stream_that_has_begun_cannot_be_entered() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        stream = model.embed_stream([numbered(1), numbered(2)])
        await anext(stream)
        with pytest.raises(InvalidConfig, match="begun"):
            await stream.__aenter__()
        await stream.aclose()


async def test_an_input_that_closes_the_handle_ends_its_own_stream() -> None:
    async def closing(model: ImageEmbeddings) -> AsyncIterator[Pixels]:
        yield numbered(1)
        await model.aclose()
        yield numbered(2)

    model = ImageEmbeddings(TINY_IMAGE)
    await model.load()
    with anyio.fail_after(30), pytest.raises(ModelClosed):
        await drain(model.embed_stream(closing(model)), [])


async def test_a_stream_waits_where_a_call_is_refused(inference: Brake) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_pending=2)) as model:
        await model.load()
        inference.hold()
        results: list[Ok[int] | Err[int]] = []

        async def consume() -> None:
            results.extend(await collect(model.embed_stream([numbered(1)] * 6, concurrency=6)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, numbered(1))
            tasks.start_soon(model.forward, numbered(2))
            await inference.wait_entered()
            tasks.start_soon(consume)
            await anyio.wait_all_tasks_blocked()
            assert model.state.queue_depth == 2
            inference.release()
        assert [type(result) for result in results] == [Ok] * 6
        assert model.statistics().refused == 0


@pytest.mark.parametrize("items", ["photo.jpg", b"bytes", 42, None], ids=str)
async def test_an_input_that_is_not_an_iterable_of_items_is_refused_immediately(items: Any) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(InvalidUserInput, match=type(items).__name__):
            model.embed_stream(items)
        with pytest.raises(InvalidUserInput, match=type(items).__name__):
            await model.forward_batch(items)


async def test_a_concurrency_below_one_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="concurrency"):
        ImageEmbeddings(TINY_IMAGE).embed_stream([], concurrency=0)


@pytest.mark.parametrize("count", [0, 1, 9])
async def test_a_batch_has_a_row_for_each_item_in_order(count: int) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        batch = await model.forward_batch(np.stack([numbered(n) for n in range(9)])[:count])
        assert batch.shape == (count, 512)
        assert batch.dtype == np.float32
        for row, number in zip(batch, range(count), strict=True):
            np.testing.assert_allclose(row, await model.forward(numbered(number)), atol=1e-5)


async def test_a_batch_names_the_item_that_failed() -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(BatchItemFailed, match=r"item 1 .*nowhere\.jpg") as caught:
            await model.forward_batch([numbered(1), "/nowhere.jpg", numbered(2)])
        assert caught.value.index == 1
        assert isinstance(caught.value.error, InvalidUserInput)
        assert caught.value.__cause__ is caught.value.error
        assert caught.value.code == caught.value.error.code
        assert isinstance(caught.value, AioembedError)
