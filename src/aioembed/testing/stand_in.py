"""Handles without a model: the same methods, states and errors, and vectors from a hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import anyio
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .._signature import ModelContract
from ..errors import InvalidUserInput, NotActive
from ..handle import EmbeddingHandle, Inputs, Session
from ..image import ImageEmbeddings
from ..images import ImageInput
from ..models import EmbeddingSpace, Modality, ModelSpec
from ..runtime import MethodInfo
from ..similarity import Embedding
from ..state import Lifecycle, Status
from ..statistics import Stopwatch
from ..text import TextEmbeddings
from ..tokenize import Truncate

__all__ = ["ImageEmbeddingsStandIn", "TextEmbeddingsStandIn"]

ItemT = TypeVar("ItemT")


class _StandInModel:
    """Takes the place of a loaded program."""

    def __init__(self, owner: _StandIn[Any], contract: ModelContract) -> None:
        self._owner = owner
        self.contract = contract
        self.programs = (self,)
        self.text = None
        self.wakes_quickly = True
        self.memory = 0
        self.hurry = anyio.Event()  # ends the delays: nothing waits for them at a close

    async def run(self, _program: object, batch: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        with anyio.move_on_after(self._owner.delay):
            await self.hurry.wait()
        return [self._owner.answer(bytes(inputs[0])) for inputs in batch]

    def close(self) -> None: ...


class _StandInLoader:
    """Takes the place of the loader: the moves are those of a load."""

    def __init__(self, owner: _StandIn[Any], lifecycle: Lifecycle, contract: ModelContract) -> None:
        self._owner = owner
        self._lifecycle = lifecycle
        self._contract = contract
        self.model: _StandInModel | None = None

    async def load(self, admit: Callable[[int], Awaitable[bool]]) -> _StandInModel:
        if self._owner.downloads:
            self._lifecycle.move(Status.DOWNLOADING, download_progress=0.0)
            await anyio.sleep(self._owner.load_delay)
        self._lifecycle.move(Status.LOADING, download_progress=1.0)
        await admit(self._owner.memory)
        await anyio.sleep(self._owner.load_delay)
        if self._owner.load_error is not None:
            raise self._owner.load_error.with_traceback(None)
        self.model = _StandInModel(self._owner, self._contract)
        return self.model

    def pause(self) -> None:
        raise NotActive("a stand-in has no download that could be paused")

    resume = cancel = pause


class _StandIn(EmbeddingHandle[ItemT], Generic[ItemT]):
    """What the stand-ins of both modalities share.

    Attributes:
        delay: Seconds that each inference takes.
        load_delay: Seconds that a load takes, and a download as well.
        load_error: What loads raise, if anything.
        downloads: Whether loads go through `downloading`.
        memory: Bytes that it counts for in a `ModelPool`.
        items: What was embedded so far, in the order of the calls.
    """

    delay: float
    load_delay: float
    load_error: Exception | None
    downloads: bool
    memory: int
    items: list[ItemT]

    def _stand_in(self, embedding_dim: int, max_batch: int) -> None:
        self.delay = self.load_delay = 0.0
        self.load_error = None
        self.downloads = False
        self.memory = 0
        self.items = []
        self._results: dict[bytes, NDArray[np.float32] | Exception] = {}
        self._dim = embedding_dim
        nothing = MethodInfo("forward", (), ())
        contract = ModelContract(
            modality=self.modality,
            preprocessing=None,
            embedding_dim=embedding_dim,
            normalized=True,
            space=EmbeddingSpace(base=f"stand-in-{embedding_dim}"),
            forward=nothing,
            batch_method="forward",
            max_batch=max_batch,
            metadata=None,
        )
        self._stand_in_loader = _StandInLoader(self, self._lifecycle, contract)
        self._loader = self._stand_in_loader  # type: ignore[assignment]

    def set_result(self, item: ItemT, result: ArrayLike | Exception) -> None:
        """Say what embedding an item gives, in place of a vector from its hash.

        Args:
            item: What `forward` will receive.
            result: A vector `(embedding_dim,)`, which is scaled to length 1, or what is raised.

        Raises:
            InvalidUserInput: The vector has another shape, or no length.
        """
        if isinstance(result, Exception):
            self._results[_content(item)] = result
            return
        vector = np.asarray(result, np.float32)
        length = float(np.linalg.norm(vector))
        if vector.shape != (self._dim,) or not length > 0:
            raise InvalidUserInput(f"a vector of {self._dim} values is needed, not {vector.shape}")
        self._results[_content(item)] = vector / np.float32(length)

    def answer(self, content: bytes) -> NDArray[np.float32]:
        """Return the vector of an item's bytes, or raise what was set for it."""
        result = self._results.get(content)
        if isinstance(result, Exception):
            raise result
        if result is not None:
            return result.copy()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        vector = np.random.default_rng(seed).standard_normal(self._dim).astype(np.float32)
        scaled: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return scaled

    async def _shut_down(self) -> bool:
        if self._stand_in_loader.model is not None:
            self._stand_in_loader.model.hurry.set()
        return await super()._shut_down()

    async def _obtain(self, item: ItemT, stopwatch: Stopwatch) -> ItemT:  # noqa: ARG002
        return item

    async def _prepare(
        self,
        item: ItemT,
        session: Session,  # noqa: ARG002
        stopwatch: Stopwatch,  # noqa: ARG002
    ) -> Inputs:
        self.items.append(item)
        return (np.frombuffer(_content(item), np.uint8),)


class ImageEmbeddingsStandIn(_StandIn[ImageInput], ImageEmbeddings):
    """An `ImageEmbeddings` without a model, for tests of applications.

    It has the handle's methods, states, queue and errors, and goes through its moves. A vector
    comes from the item's bytes: equal items have equal vectors, others nearly orthogonal ones.
    Nothing is fetched, read or decoded: the bytes of a URL or path are those of its text.

    Args:
        embedding_dim: Values per vector.
        max_batch: Most items in one inference.
        **options: As for `ImageEmbeddings`, without `model_source`.
    """

    def __init__(self, *, embedding_dim: int = 512, max_batch: int = 1, **options: Any) -> None:  # noqa: ANN401
        super().__init__(_spec("image", embedding_dim), **options)
        self._stand_in(embedding_dim, max_batch)


class TextEmbeddingsStandIn(_StandIn[str], TextEmbeddings):  # type: ignore[misc]  # takes fewer
    """A `TextEmbeddings` without a model, for tests of applications; see `ImageEmbeddingsStandIn`.

    Args:
        embedding_dim: Values per vector.
        max_batch: Most items in one inference.
        **options: As for `TextEmbeddings`, without `model_source`.
    """

    def __init__(self, *, embedding_dim: int = 512, max_batch: int = 1, **options: Any) -> None:  # noqa: ANN401
        super().__init__(_spec("text", embedding_dim), **options)
        self._stand_in(embedding_dim, max_batch)

    async def forward(  # noqa: D102  # as the base class
        self,
        text: str,
        *,
        truncate: Truncate | None = None,
        timeout: float | None = None,
        on_tokens: Callable[[int], object] | None = None,
    ) -> Embedding:
        vector = await super().forward(text, truncate=truncate, timeout=timeout)
        if on_tokens is not None:
            on_tokens(await self.count_tokens(text))
        return vector

    embed = forward

    async def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())


def _spec(modality: Modality, embedding_dim: int) -> ModelSpec:
    return ModelSpec(
        name="stand-in",
        source="https://stand-in.invalid/model.pte",
        modality=modality,
        embedding_dim=embedding_dim,
        tokenizer_source="https://stand-in.invalid/tokenizer.json" if modality == "text" else None,
    )


def _content(item: object) -> bytes:
    """Return the bytes that decide an item's vector."""
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, tuple) and item:  # a text with its own options
        return _content(item[0])
    if isinstance(item, str | os.PathLike):
        return os.fsencode(os.fspath(item))
    if isinstance(item, np.ndarray):
        return repr((item.shape, item.dtype.str)).encode() + item.tobytes()
    if isinstance(item, Image.Image):
        return repr((item.size, item.mode)).encode() + item.tobytes()
    raise InvalidUserInput(f"a {type(item).__name__} cannot be embedded")
