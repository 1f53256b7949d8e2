"""Embedding many items: streams, and batches built on them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Container, Iterable
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import BatchItemFailed, InvalidConfig, InvalidUserInput, shorten
from .calls import Calls
from .items import Items, is_iterable_of_items, keyed_items
from .nursery import Nursery
from .stream import EmbeddingStream, Err, Pipeline

__all__ = ["BulkEmbedding"]

InputT = TypeVar("InputT")
KeyT = TypeVar("KeyT")
_CONCURRENCY = 64


class BulkEmbedding(ABC, Generic[InputT]):
    """What a handle can do with many items."""

    _calls: Calls[InputT]
    _nursery: Nursery

    @overload
    def embed_stream(
        self,
        items: Items[InputT],
        *,
        keyed: Literal[False] = False,
        ordered: bool = True,
        concurrency: int | None = None,
        skip: Container[int] = (),
    ) -> EmbeddingStream[int]: ...
    @overload
    def embed_stream(
        self,
        items: Items[tuple[KeyT, InputT]],
        *,
        keyed: Literal[True],
        ordered: bool = True,
        concurrency: int | None = None,
        skip: Container[KeyT] = (),
    ) -> EmbeddingStream[KeyT]: ...
    def embed_stream(
        self,
        items: Items[Any],
        *,
        keyed: bool = False,
        ordered: bool = True,
        concurrency: int | None = None,
        skip: Container[Any] = (),
    ) -> EmbeddingStream[Any]:
        """Embed any number of items in bounded memory, each failing alone.

        Iterate over what it returns, best inside `async with`:

            async with model.embed_stream(paths) as results:
                async for result in results:
                    match result:
                        case Ok(key, embedding): ...
                        case Err(key, error): ...

        The input is read only as fast as results are: at most `concurrency` items are under way
        or wait to be read. A stream waits where a single call would be refused with `ModelBusy`.
        What the input raises arrives after the results before it. If the model cannot be loaded,
        or is closed meanwhile, the iteration raises that.

        To resume, remember the keys of the results, and pass them as `skip` with the same input.

        Args:
            items: What `forward` takes, in any iterable or async iterable; a plain one is
                advanced on the event loop, so it must not block.
            keyed: `items` are pairs `(key, item)`. Otherwise keys are places, from 0.
            ordered: Results come in the order of the input; otherwise as they get ready.
            concurrency: Most items between input and consumer, 64 by default. What fetches from
                slow servers profits from more.
            skip: Keys whose items are passed over.

        Raises:
            InvalidConfig: `concurrency` is below 1.
            InvalidUserInput: `items` is no iterable, or one item.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        wanted = _CONCURRENCY if concurrency is None else concurrency
        if wanted < 1:
            raise InvalidConfig(f"concurrency must be at least 1, not {wanted}")
        make = partial(
            Pipeline,
            keyed_items(items, keyed=keyed, skip=skip),
            begin=self._session,
            embed=self._calls.run_when_admitted,
            ordered=ordered,
            concurrency=min(wanted, self._calls.limit),
        )
        return EmbeddingStream(make, self._nursery)

    async def forward_batch(self, items: Iterable[InputT]) -> NDArray[np.float32]:
        """Embed several items.

        Args:
            items: What `forward` takes each. An array of images is uint8 `(n, height, width, 3)`.

        Returns:
            float32 `(n, embedding_dim)`, rows of length 1 in the order of the items.

        Raises:
            BatchItemFailed: One of them failed; the others are given up. `embed_stream` keeps
                their vectors.
            InvalidUserInput: `items` is no iterable, or one item.
            ModelNotLoaded: No load was started.
            ModelClosed: The handle was closed.
            AioembedError: The load that this call waited for failed.
        """
        if not is_iterable_of_items(items, Iterable):
            raise InvalidUserInput(
                f"a {type(items).__name__} is no iterable of items: pass a list of them"
            )
        listed = list(items)
        await self._session()
        rows = np.empty((len(listed), self.embedding_dim), np.float32)
        async with self.embed_stream(listed, ordered=False) as results:
            async for result in results:
                if isinstance(result, Err):
                    raise _failed(result, listed[result.key]) from result.error
                rows[result.key] = result.embedding
        return rows

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """Values per vector."""

    @abstractmethod
    def _check_loop(self) -> None: ...

    @abstractmethod
    def _session(self) -> Awaitable[Any]: ...


def _failed(failure: Err[int], item: object) -> BatchItemFailed:
    name = shorten(item) if isinstance(item, str | os.PathLike) else f"a {type(item).__name__}"
    return BatchItemFailed(
        f"item {failure.key} ({name}) cannot be embedded: {failure.error}",
        index=failure.key,
        error=failure.error,
    )
