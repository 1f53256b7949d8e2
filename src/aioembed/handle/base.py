"""The async handle that every modality shares: its life, its observers, its callers."""

from __future__ import annotations

import difflib
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import ClassVar, Self, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from .._signature import ModelContract
from .._tasks import Loop, current_loop
from ..errors import (
    AioembedError,
    InvalidConfig,
    ModelClosed,
    ModelNotLoaded,
    WrongEventLoop,
    shorten,
)
from ..models import (
    EmbeddingSpace,
    Modality,
    ModelSource,
    ModelSpec,
    ProgramMetadata,
    resolve_model,
)
from ..runtime import available_cpus
from ..state import Lifecycle, ModelState, Status
from ..statistics import Statistics, Stopwatch
from .bulk import BulkEmbedding
from .calls import Calls, OnBusy, OnCall
from .loaded import Inputs, LoadedModel
from .loader import Loader, LoadOptions
from .loading import Job, Loading, Session
from .nursery import Nursery

__all__ = ["EmbeddingHandle"]

_logger = logging.getLogger("aioembed.handle")

InputT = TypeVar("InputT")
Embedding = NDArray[np.float32]


class EmbeddingHandle(BulkEmbedding[InputT]):
    """A model whose life anyone can observe. Making one does no I/O.

    It belongs to one event loop. Used with `async with`, it loads in the background as soon as
    it is entered and is closed at the end; without, call `load` and `aclose` yourself.
    """

    modality: ClassVar[Modality]

    def __init__(
        self,
        model_source: ModelSource,
        *,
        options: LoadOptions,
        prevent_load: bool,
        max_pending: int,
        on_busy: OnBusy,
        on_call: OnCall | None = None,
    ) -> None:
        self._spec = resolve_model(model_source, modality=self.modality)
        if self._spec.modality != self.modality:
            raise InvalidConfig(
                f"{self._spec.name} embeds {self._spec.modality}s; "
                f"{type(self).__name__} embeds {self.modality}s"
            )
        self._prevent_load = prevent_load
        self._load_expected = False
        self._lifecycle = Lifecycle()
        self._loader = Loader(self._spec, options, self._lifecycle)
        self._loading = Loading(self._lifecycle, self._open_session)
        self._options = options
        self._decoders = anyio.CapacityLimiter(options.decode_threads or available_cpus())
        self._calls = Calls(
            self._embed,
            max_pending=max_pending,
            on_busy=on_busy,
            on_pending=self._on_pending,
            on_call=on_call,
        )
        self._closing = False
        self._close_lock = anyio.Lock()
        self._nursery = Nursery()
        self._home: Loop | None = None

    @property
    def spec(self) -> ModelSpec:
        """What is known of the model from outside."""
        return self._spec

    # --- observing

    @property
    def state(self) -> ModelState:
        """What the model is doing now: a frozen value, the same object until it changes."""
        return self._lifecycle.value

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, without arguments, after every change of `state`.

        Args:
            callback: Called on the event loop's thread; must not block. If it raises, that is
                logged and disturbs nobody.

        Returns:
            A function that ends the subscription.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        return self._lifecycle.subscribe(callback)

    def states(self) -> AsyncIterator[ModelState]:
        """Iterate over the current state, then the latest ones, up to and including `closed`.

        A reader that is slower than the changes skips the ones in between and holds up nobody.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        return self._lifecycle.values(lambda state: state.status is Status.CLOSED)

    async def wait_for(self, condition: Status | str | Callable[[ModelState], bool]) -> ModelState:
        """Wait until the model is in a status, or a condition holds, and return that state.

        A state that lasts shorter than the event loop's turn may be missed.

        Args:
            condition: A status, its name, or a function of the state.

        Raises:
            ModelClosed: The model was closed, so that it cannot come true any more.
            InvalidConfig: No status has that name.
            WrongEventLoop: The handle is open on another event loop.
            AioembedError: The load failed, which another load may change: this is its error.
        """
        wanted = condition if callable(condition) else _status(condition)
        async for state in self.states():
            if wanted(state) if callable(wanted) else state.status is wanted:
                return state
            if state.status is Status.FAILED and wanted is not Status.CLOSED:
                assert state.error is not None  # noqa: S101  # every failure has one
                raise state.error.with_traceback(None)
        raise ModelClosed("the model was closed before the awaited state came")

    # --- life

    async def __aenter__(self) -> Self:
        if self._closing:
            raise ModelClosed("the model is closed: make a new handle")
        if self._nursery.is_open:
            raise InvalidConfig("the handle is in use by another `async with` already")
        self._check_loop()
        self._home = current_loop()
        await self._nursery.open()
        if not self._prevent_load:
            self._load_expected = True
            self._nursery.start(self._load_in_background)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            if self._nursery.is_open:
                await self.aclose()
        finally:
            suppress = await self._nursery.close(exc_type, exc, traceback)
        return suppress

    async def load(self) -> None:
        """Fetch and load the model; return at once if it is loaded.

        Concurrent callers share one load. After an error, call it again to try again. Cancelling
        the only caller stops the load; what was downloaded is kept.

        Raises:
            ResourceError: The model's files could not be fetched.
            ModelError: The file or the program in it is at fault.
            ModelClosed: The handle is closed.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        self._home = current_loop()
        await self._loading.ensure()

    def pause_download(self) -> None:
        """Pause the download: the connection is closed, and what arrived is kept.

        Raises:
            NotActive: No download is under way.
            AlreadyPaused: It is paused.
        """
        self._check_loop()
        self._loader.pause()

    def resume_download(self) -> None:
        """Go on with a paused download.

        Raises:
            NotActive: No download is under way.
            AlreadyOngoing: It is not paused.
        """
        self._check_loop()
        self._loader.resume()

    def cancel_download(self) -> None:
        """End the download: who waits for it gets `DownloadCancelled`, the model is idle again.

        What arrived is kept, and `load` goes on from there.

        Raises:
            NotActive: No download is under way.
        """
        self._check_loop()
        self._loader.cancel()

    async def aclose(self) -> None:
        """Close for good: wait for the inference in flight, refuse what waits, free the memory.

        Idempotent; concurrent callers return together.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        self._closing = True
        with anyio.CancelScope(shield=True):
            async with self._close_lock:
                await self._loading.aclose()
                if self.state.status is not Status.CLOSED:
                    self._lifecycle.move(Status.CLOSED, queue_depth=0)

    # --- embedding

    async def forward(self, item: InputT, *, timeout: float | None = None) -> Embedding:
        """Embed one item; subclasses say what it may be."""
        self._check_loop()
        return await self._calls.run(item, timeout)

    def statistics(self) -> Statistics:
        """Return what has been done since the handle was made, as a frozen value."""
        return self._calls.statistics()

    @property
    def embedding_dim(self) -> int:
        """Values per vector.

        Raises:
            ModelNotLoaded: Not loaded, and the model's spec does not say.
        """
        if self._loading.session is None and self._spec.embedding_dim is not None:
            return self._spec.embedding_dim
        return self._contract.embedding_dim

    @property
    def space(self) -> EmbeddingSpace:
        """The space the vectors live in: vectors of different spaces do not compare.

        Raises:
            ModelNotLoaded: The space is known once the model is loaded.
        """
        return self._contract.space

    @property
    def space_id(self) -> str:
        """Fingerprint of weights, preprocessing and normalisation; `space.id`.

        Raises:
            ModelNotLoaded: The space is known once the model is loaded.
        """
        return self.space.id

    @property
    def metadata(self) -> ProgramMetadata | None:
        """What the program says of itself; None for one that was not exported by this library.

        Raises:
            ModelNotLoaded: It is known once the model is loaded.
        """
        return self._contract.metadata

    @abstractmethod
    async def _prepare(self, item: InputT, model: LoadedModel, stopwatch: Stopwatch) -> Inputs: ...

    async def _obtain(self, item: InputT, stopwatch: Stopwatch) -> InputT:  # noqa: ARG002
        """Fetch what the item names elsewhere; nothing, unless a subclass says so."""
        return item

    async def _embed(self, item: InputT, stopwatch: Stopwatch) -> Embedding:
        session = await self._session()
        stopwatch.restart()
        async with session.intake:
            obtained = await self._obtain(item, stopwatch)
            await session.gate.acquire()
        try:
            inputs = await self._prepare(obtained, session.model, stopwatch)
            return await session.scheduler.submit(Job(inputs, stopwatch))
        finally:
            session.gate.release()

    @property
    def _contract(self) -> ModelContract:
        if self._loading.session is None:
            raise ModelNotLoaded("the model is not loaded: await load() first")
        return self._loading.session.model.contract

    def _on_pending(self, pending: int) -> None:
        if self.state.status is not Status.CLOSED:
            self._lifecycle.update(queue_depth=pending)

    def _check_loop(self) -> None:
        """Refuse a call from another event loop than the one that the handle is open on."""
        is_open = (
            self._nursery.is_open or self._loading.under_way or self._loading.session is not None
        )
        if is_open and current_loop() is not self._home:
            raise WrongEventLoop(
                "the handle is open on another event loop, where alone it can be used: call it "
                "there, with anyio.from_thread.BlockingPortal from another thread, or open a "
                "handle for each event loop"
            )

    async def _session(self) -> Session:
        self._check_loop()
        if self._closing:
            raise ModelClosed("the model is closed: make a new handle")
        if self._loading.session is not None:
            return self._loading.session
        if not self._loading.under_way:
            if self.state.error is not None:
                raise self.state.error.with_traceback(None)
            if not self._load_expected:
                raise ModelNotLoaded("no load was started: await load(), or use `async with`")
        return await self._loading.ensure()

    async def _open_session(self) -> Session:
        model = await self._loader.load()
        return Session.of(
            model,
            decoders=int(self._decoders.total_tokens),
            max_wait=self._options.max_wait,
            on_running=self._on_running,
        )

    def _on_running(self, batches: int) -> None:
        status = Status.GENERATING if batches else Status.READY
        if status is not self._lifecycle.status:
            self._lifecycle.move(status)

    async def _load_in_background(self) -> None:
        try:
            await self._loading.ensure()
        except AioembedError:
            _logger.debug("the load in the background failed; the state says why", exc_info=True)
        finally:
            self._load_expected = False


def _status(name: object) -> Status:
    try:
        return Status(name)  # type: ignore[arg-type]  # refuses what is no string, too
    except ValueError:
        near = difflib.get_close_matches(str(name), list(Status), n=2) or list(Status)
        names = " or ".join(repr(str(status)) for status in near)
        raise InvalidConfig(f"{shorten(name)} is not a status: did you mean {names}?") from None
