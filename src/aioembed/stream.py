"""Streams of embeddings: any number of items in, keyed results out, in bounded memory."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Container,
    Generator,
    Iterable,
)
from contextlib import aclosing
from dataclasses import dataclass
from itertools import takewhile
from types import UnionType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from ._tasks import Task, call_soon_on, current_loop, spawn
from .errors import AioembedError, InternalError, InvalidConfig, InvalidUserInput, ModelClosed
from .similarity import Embedding

__all__ = [
    "EmbeddingStream",
    "Err",
    "Items",
    "Ok",
    "Pipeline",
    "is_iterable_of_items",
    "keyed_items",
]

KeyT = TypeVar("KeyT")
Key_co = TypeVar("Key_co", covariant=True)
ItemT = TypeVar("ItemT")
Items = Iterable[ItemT] | AsyncIterable[ItemT]
"""A plain iterable is advanced on the event loop, so it must not block."""

_NO_KEY: Any = None
_PAIR = 2


@dataclass(frozen=True, slots=True)
class Ok(Generic[Key_co]):
    """An item that was embedded.

    Attributes:
        key: The item's own, or its place in the input, from 0.
        embedding: float32 `(embedding_dim,)`, of length 1.
    """

    key: Key_co
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class Err(Generic[Key_co]):
    """An item that could not be embedded.

    Attributes:
        key: The item's own, or its place in the input, from 0.
        error: What `forward` would have raised.
    """

    key: Key_co
    error: AioembedError


class _Place(Generic[KeyT]):
    """One item between input and consumer, with its result or the error that ends the stream."""

    __slots__ = ("error", "key", "result")

    def __init__(self, key: KeyT, error: BaseException | None = None) -> None:
        self.key = key
        self.result: Ok[KeyT] | Err[KeyT] | None = None
        self.error = error

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


class Pipeline(Generic[KeyT, ItemT]):
    """The work of a stream, in a background task that does not hold on to the stream itself.

    Args:
        items: Keys and items.
        begin: Awaited once before the first item; its error ends the stream.
        embed: Embeds one item. What it raises is the item's own error, whatever it is.
        is_fatal: Whether an error is the model's and not the item's: it ends the stream, as a
            lack of memory does.
        on_end: Called with the pipeline when nothing is under way any more.
        ordered: Whether results come in the order of the input.
        concurrency: Most items that are under way or wait to be read.
    """

    def __init__(
        self,
        items: AsyncGenerator[tuple[KeyT, ItemT], None],
        *,
        begin: Callable[[], Awaitable[object]],
        embed: Callable[[ItemT], Awaitable[Embedding]],
        is_fatal: Callable[[Exception], bool],
        on_end: Callable[[Pipeline[Any, Any]], object],
        ordered: bool,
        concurrency: int,
    ) -> None:
        self._items = items
        self._begin = begin
        self._embed = embed
        self._is_fatal = is_fatal
        self._on_end = on_end
        self._ordered = ordered
        self._room = anyio.Semaphore(concurrency, fast_acquire=True)
        self._places: deque[_Place[KeyT]] = deque()
        self._news = anyio.Event()
        self._is_reading = self._is_stopped = False
        self._task: Task[None] = spawn(self._run, name="aioembed stream")

    async def next(self) -> Ok[KeyT] | Err[KeyT] | None:
        """Return the next result; None at the end.

        Raises:
            BaseException: What ended the stream, after the results before it.
        """
        while not (self._places and self._places[0].is_done):
            if self._task.done:
                return None
            await self._news.wait()
        place = self._places.popleft()
        self._room.release()
        if place.error is not None:
            self.stop()
            raise place.error
        return place.result

    def stop(self) -> None:
        """Cancel what is under way and forget what was not read."""
        self._is_stopped = True
        self._places.clear()
        self._task.cancel()

    async def close(self) -> None:
        """End with `ModelClosed` for who reads on, and return when no item is under way.

        The input is not waited for: it may itself be what closes the handle.
        """
        self._task.cancel()
        if not self._is_reading:
            await self._task.wait()

    async def wait_ended(self) -> None:
        """Wait until nothing is under way any more."""
        await self._task.wait()

    async def _run(self) -> None:
        """Embed the items, never more at a time than there is room for."""
        failure: BaseException | None = ModelClosed("the model was closed before the stream ended")
        try:
            async with anyio.create_task_group() as tasks:
                reading = await self._read(tasks)
            failure = reading
        finally:
            self._places = deque(takewhile(lambda place: place.is_done, self._places))
            if failure is not None and not self._is_stopped:
                self._places.append(_Place(_NO_KEY, failure))
            self._on_end(self)
            self._tell()

    async def _read(self, tasks: TaskGroup) -> Exception | None:
        """Start a task for each item; return what the input raised, if it did."""
        try:
            await self._begin()
            async with aclosing(self._items) as items:
                while True:
                    await self._room.acquire()
                    self._is_reading = True
                    key, item = await anext(items)
                    self._is_reading = False
                    place = _Place(key)
                    if self._ordered:
                        self._places.append(place)
                    tasks.start_soon(self._embed_into, place, item)
        except StopAsyncIteration:
            return None
        except Exception as error:  # noqa: BLE001  # raised at the consumer
            return error

    async def _embed_into(self, place: _Place[KeyT], item: ItemT) -> None:
        try:
            place.result = Ok(place.key, await self._embed(item))
        except Exception as error:  # noqa: BLE001  # kept for the consumer
            if isinstance(error, MemoryError) or self._is_fatal(error):
                place.error = error
            else:
                own = error if isinstance(error, AioembedError) else InternalError.of(error)
                place.result = Err(place.key, own)
        if not self._ordered:
            self._places.append(place)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class EmbeddingStream(Generic[KeyT]):
    """Results of a stream of items: iterate with `async for`.

    Within `async with stream:` all its work has ended when the block is left. Without, leaving
    the loop early and dropping the stream stops it, and `aclose` does so immediately. Closing
    the handle ends its streams.

    Args:
        make: Starts the pipeline, on the event loop.
        check: Called before anything else; raises where the stream cannot be used.
    """

    def __init__(
        self, make: Callable[[], Pipeline[KeyT, Any]], check: Callable[[], object]
    ) -> None:
        self._make = make
        self._check = check
        self._pipeline: Pipeline[KeyT, Any] | None = None

    async def __aenter__(self) -> Self:
        if self._pipeline is not None:
            raise InvalidConfig("the stream has begun already: enter it before iterating")
        self._started()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Ok[KeyT] | Err[KeyT]:
        """Return the next result.

        Raises:
            AioembedError: The model could not be loaded, was closed meanwhile, or the runtime
                gave its program up.
            Exception: What the input raised, after the results before it.
            WrongEventLoop: The handle is open on another event loop.
        """
        result = await self._started().next()
        if result is None:
            raise StopAsyncIteration
        return result

    async def aclose(self) -> None:
        """Stop, and return when nothing is under way any more. Idempotent."""
        self._check()
        if self._pipeline is not None:
            self._pipeline.stop()
            await self._pipeline.wait_ended()

    def _started(self) -> Pipeline[KeyT, Any]:
        self._check()
        if self._pipeline is None:
            self._pipeline = pipeline = self._make()
            dropped = weakref.finalize(self, call_soon_on, current_loop(), pipeline.stop)
            dropped.atexit = False
        return self._pipeline


def is_iterable_of_items(items: object, kinds: type | UnionType = Iterable | AsyncIterable) -> bool:
    """Whether something can be iterated over and is not itself one item."""
    return isinstance(items, kinds) and not isinstance(items, str | bytes | bytearray | memoryview)


def keyed_items(
    items: Items[Any], *, keyed: bool, skip: Container[Any]
) -> AsyncGenerator[tuple[Any, Any], None]:
    """Return keys and items, those that are to be skipped left out.

    Args:
        items: Items, or pairs of key and item.
        keyed: Which of both. Items get their places as keys, from 0.
        skip: Keys to leave out.

    Raises:
        InvalidUserInput: No iterable, or one item in place of an iterable of them.
    """
    if not is_iterable_of_items(items):
        raise InvalidUserInput(
            f"a {type(items).__name__} is not an iterable of items: pass a list, a generator or an "
            "async generator of them"
        )
    return _keyed_items(items, keyed=keyed, skip=skip)


async def _keyed_items(
    items: Items[Any], *, keyed: bool, skip: Container[Any]
) -> AsyncGenerator[tuple[Any, Any], None]:
    place = 0
    async with aclosing(_iterated(items)) as iterated:
        async for item in iterated:
            pair = _pair(item, place) if keyed else (place, item)
            place += 1
            if pair[0] in skip:
                await checkpoint()
            else:
                yield pair


async def _iterated(items: Items[Any]) -> AsyncGenerator[Any, None]:
    """Iterate over either kind of iterable, and close it if it is a generator."""
    iterator: Any = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
    try:
        if isinstance(items, AsyncIterable):
            async for item in iterator:
                yield item
        else:
            for item in iterator:
                yield item
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
        elif isinstance(iterator, Generator):
            iterator.close()


def _pair(item: object, place: int) -> tuple[Any, Any]:
    if not isinstance(item, tuple) or len(item) != _PAIR:
        raise InvalidUserInput(
            f"item {place} of the stream is not a (key, item) pair, which keyed=True requires"
        )
    return item
