"""Streams of embeddings: any number of items in, keyed results out, in bounded memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import numpy as np
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token
from numpy.typing import NDArray

from ..errors import AioembedError, InternalError, InvalidConfig, ModelClosed, ModelNotLoaded
from .nursery import Nursery

__all__ = ["EmbeddingStream", "Err", "Ok", "Pipeline"]

KeyT = TypeVar("KeyT")
Key_co = TypeVar("Key_co", covariant=True)
ItemT = TypeVar("ItemT")
Embedding = NDArray[np.float32]
_NO_KEY: Any = None

_logger = logging.getLogger("aioembed.handle")


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
    """What the tasks of a stream share with it; they do not hold on to the stream itself.

    Args:
        items: Keys and items.
        begin: Awaited once before the first item; its error ends the stream.
        embed: Embeds one item.
        ordered: Whether results come in the order of the input.
        concurrency: Most items that are under way or wait to be read.
    """

    def __init__(
        self,
        items: AsyncGenerator[tuple[KeyT, ItemT], None],
        *,
        begin: Callable[[], Awaitable[object]],
        embed: Callable[[ItemT], Awaitable[Embedding]],
        ordered: bool,
        concurrency: int,
    ) -> None:
        self._items = items
        self._begin = begin
        self._embed = embed
        self._ordered = ordered
        self._room = anyio.Semaphore(concurrency, fast_acquire=True)
        self._places: deque[_Place[KeyT]] = deque()
        self._scope = anyio.CancelScope()
        self._news = anyio.Event()
        self._ended = anyio.Event()
        self._loop: Any = current_token().native_token

    async def run(self) -> None:
        """Embed the items, never more at a time than there is room for."""
        failure: BaseException | None = None
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    failure = await self._read(tasks)
        except BaseException:
            failure = ModelClosed("the model was closed before the stream had ended")
            raise
        finally:
            self._places = deque(takewhile(lambda place: place.is_done, self._places))
            if failure is not None:
                self._places.append(_Place(_NO_KEY, failure))
            self._ended.set()
            self._tell()

    async def next(self) -> Ok[KeyT] | Err[KeyT] | None:
        """Return the next result; None at the end.

        Raises:
            BaseException: What ended the stream, after the results before it.
        """
        while not (self._places and self._places[0].is_done):
            if self._ended.is_set():
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
        self._places.clear()
        self._scope.cancel()

    def stop_soon(self) -> None:
        """Stop, from any thread, or from the middle of anything on the loop's own."""
        schedule = getattr(self._loop, "run_sync_soon", None) or self._loop.call_soon_threadsafe
        with suppress(RuntimeError):  # the event loop is gone, and the tasks with it
            schedule(self.stop)

    async def wait_ended(self) -> None:
        """Wait until nothing is under way any more."""
        await self._ended.wait()

    async def _read(self, tasks: TaskGroup) -> Exception | None:
        """Start a task for each item; return what the input raised, if it did."""
        try:
            await self._begin()
            async with aclosing(self._items) as items:
                while True:
                    await self._room.acquire()
                    key, item = await anext(items)
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
        except (ModelNotLoaded, MemoryError) as error:
            place.error = error  # not the item's fault: raised at the consumer
        except AioembedError as error:
            place.result = Err(place.key, error)
        except Exception as error:  # noqa: BLE001  # one item must not end the others
            place.result = Err(place.key, _unforeseen(error))
        if not self._ordered:
            self._places.append(place)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


def _unforeseen(error: Exception) -> InternalError:
    """Turn an error that nobody foresaw into one of the library's; its cause is logged."""
    _logger.error("an item failed in an unforeseen way", exc_info=error)
    wrapped = InternalError(
        f"an unforeseen {type(error).__name__}: {error}; please report it with the logged traceback"
    )
    wrapped.__cause__ = error
    return wrapped


class EmbeddingStream(Generic[KeyT]):
    """Results of a stream of items: iterate with `async for`.

    Within `async with stream:` all its work has ended when the block is left. Without, it runs
    as long as the handle's own `async with` at most; leaving the loop early lets go of the
    stream, which stops it, and `aclose` does so at once.

    Args:
        make: Makes the pipeline, on the event loop.
        nursery: The handle's.
    """

    def __init__(self, make: Callable[[], Pipeline[KeyT, Any]], nursery: Nursery) -> None:
        self._make = make
        self._shared = nursery
        self._own = Nursery()
        self._pipeline: Pipeline[KeyT, Any] | None = None

    async def __aenter__(self) -> Self:
        if self._pipeline is not None:
            raise InvalidConfig("the stream has begun already: enter it before iterating")
        await self._own.open()
        self._start(self._own)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._pipeline is not None:
            self._pipeline.stop()
        return await self._own.close(exc_type, exc, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Ok[KeyT] | Err[KeyT]:
        """Return the next result.

        Raises:
            AioembedError: The model could not be loaded, or was closed meanwhile.
            Exception: What the input raised, after the results before it.
            InvalidConfig: Neither the stream nor its handle is in an `async with`.
        """
        pipeline = self._pipeline or self._start(self._shared)
        result = await pipeline.next()
        if result is None:
            raise StopAsyncIteration
        return result

    async def aclose(self) -> None:
        """Stop, and return when nothing is under way any more. Idempotent."""
        if self._pipeline is not None:
            self._pipeline.stop()
            await self._pipeline.wait_ended()

    def _start(self, nursery: Nursery) -> Pipeline[KeyT, Any]:
        if not nursery.is_open:
            raise InvalidConfig(
                "a stream needs a block to run in: `async with` its handle, or "
                "`async with handle.embed_stream(...) as results`"
            )
        self._pipeline = self._make()
        nursery.start(self._pipeline.run)
        return self._pipeline

    def __del__(self) -> None:
        if self._pipeline is not None:
            self._pipeline.stop_soon()
