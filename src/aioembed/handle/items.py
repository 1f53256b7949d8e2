"""What goes into a stream: any iterable of items, or of pairs of key and item."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Container, Generator, Iterable
from contextlib import aclosing
from types import UnionType
from typing import Any, TypeVar

from anyio.lowlevel import checkpoint

from ..errors import InvalidUserInput

__all__ = ["Items", "is_iterable_of_items", "keyed_items"]

ItemT = TypeVar("ItemT")
Items = Iterable[ItemT] | AsyncIterable[ItemT]
"""A plain iterable is advanced on the event loop, so it must not block."""

_PAIR = 2


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
            f"a {type(items).__name__} is no iterable of items: pass a list, a generator or an "
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
            f"item {place} of the stream is no (key, item) pair, which keyed=True asks for"
        )
    return item
