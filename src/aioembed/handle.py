"""The async handle that every modality shares: its life, its observers, its callers."""

from __future__ import annotations

import difflib
import logging
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, overload

import anyio
import numpy as np

from ._batcher import Batcher
from ._calls import Calls, OnCall
from ._loader import Admission, Admit, Inputs, LoadedModel, Loader
from ._signature import ModelContract
from ._tasks import BlockingCall, Loop, Task, current_loop, has_ended, is_stopped, spawn, to_end
from .errors import (
    AioembedError,
    BatchItemFailed,
    DownloadCancelled,
    ForwardTimeout,
    InternalError,
    InvalidConfig,
    InvalidUserInput,
    ModelClosed,
    ModelNotLoaded,
    ProgramLost,
    WrongEventLoop,
    shorten,
)
from .models import (
    EmbeddingSpace,
    Modality,
    ModelSource,
    ModelSpec,
    ProgramMetadata,
    resolve_model,
)
from .options import LoadOptions, Queueing, check_count, check_kind
from .runtime import Program, available_cpus
from .similarity import Embedding, Embeddings
from .state import Lifecycle, ModelState, Status
from .statistics import Statistics, Stopwatch
from .stream import (
    EmbeddingStream,
    Err,
    Items,
    Pipeline,
    is_iterable_of_items,
    keyed_items,
)

__all__ = ["Admission", "Admit", "EmbeddingHandle", "Inputs", "LoadedModel", "OnCall", "Session"]

_logger = logging.getLogger("aioembed.handle")

InputT = TypeVar("InputT")
KeyT = TypeVar("KeyT")

_STREAM_CONCURRENCY = 64
_MOST_FETCHED = 64


class _Job(NamedTuple):
    """One item's inputs, and what times it."""

    inputs: Inputs
    stopwatch: Stopwatch


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A loaded model and what runs it on one event loop.

    Attributes:
        model: The program and its contract.
        batcher: Runs the model on prepared inputs.
        prepared: Bounds how many items are prepared, or wait prepared, at the same time.
        fetched: Bounds how many are fetched, or wait fetched, at the same time.
        decoders: Bounds how many worker threads prepare items.
    """

    model: LoadedModel
    batcher: Batcher[Program, _Job, Embedding]
    prepared: anyio.Semaphore
    fetched: anyio.Semaphore
    decoders: anyio.CapacityLimiter


class EmbeddingHandle(ABC, Generic[InputT]):
    """A model whose life anyone can observe. Making one does no I/O.

    Open, it belongs to one event loop. Used with `async with`, it loads in the background as
    soon as it is entered and is closed at the end; without, call `load` and `aclose` yourself.
    Either opens a closed handle again, on the caller's event loop.
    """

    modality: ClassVar[Modality]

    def __init__(
        self,
        model_source: ModelSource,
        *,
        options: LoadOptions,
        queueing: Queueing | None,
        prevent_load: bool,
        on_call: OnCall | None = None,
    ) -> None:
        self._spec = resolve_model(model_source, modality=self.modality)
        if self._spec.modality != self.modality:
            raise InvalidConfig(
                f"{self._spec.name} embeds {self._spec.modality}s; "
                f"{type(self).__name__} embeds {self.modality}s"
            )
        check_kind("queueing", queueing, Queueing | None, "a Queueing or None")
        check_kind("prevent_load", prevent_load, bool, "True or False")
        if on_call is not None and not callable(on_call):
            raise InvalidConfig(f"on_call must be a function or None, not {shorten(on_call)}")
        self._options = options
        self._queueing = queueing or Queueing()
        self._prevent_load = prevent_load
        self._lifecycle = Lifecycle()
        self._loader = Loader(self._spec, options, self._lifecycle)

        self._home: Loop | None = None
        self._entered = False
        self._session: Session | None = None
        self._load: Task[None] | None = None
        self._load_wanted = 0
        self._close: Task[bool] | None = None
        self._streams: set[Pipeline[Any, InputT]] = set()
        self._slept: ModelContract | None = None  # the model's, while it sleeps
        self._unused_since = 0.0
        self._idle_watch: Task[None] | None = None
        self._running_calls = 0  # that need the session to end
        self._sleep: Task[None] | None = None
        self._unused: anyio.Event | None = None  # what a sleep waits for
        self._admit: Admit | None = None
        self._admission: Admission | None = None  # of the memory that the model takes

        self._calls = Calls(
            self._queueing.max_pending, on_call=on_call, on_pending=self._on_pending
        )

    def __repr__(self) -> str:
        """The model's name and its status."""
        return f"<{type(self).__name__} {self._spec.name!r}: {self.state.status}>"

    @property
    def spec(self) -> ModelSpec:
        """What is known of the model from outside."""
        return self._spec

    # --- observing

    @property
    def state(self) -> ModelState:
        """What the model is doing now: a frozen value, the same object until it changes.

        May be read from any thread.
        """
        return self._lifecycle.value

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, without arguments, after every change of `state`.

        Changes of status are published immediately, mere figures (queue depth, download rate) at
        most once per turn of the event loop.

        Args:
            callback: Called on the event loop's thread; must not block. If it raises, that is
                logged and does not affect the others.

        Returns:
            A function that ends the subscription.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        return self._lifecycle.subscribe(callback)

    def states(self) -> AsyncIterator[ModelState]:
        """Iterate over the current state, then the latest ones, up to and including `closed`.

        A reader that is slower than the changes skips the ones in between and delays nobody else.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        return self._lifecycle.values(self._check_loop)

    async def wait_for(self, condition: Status | str | Callable[[ModelState], bool]) -> ModelState:
        """Wait until the model is in a status, or a condition holds, and return that state.

        Waiting for `ready` wakes a model that sleeps. A state that lasts shorter than the event
        loop's turn may be missed.

        Args:
            condition: A status, its name, or a function of the state.

        Raises:
            ModelClosed: The model was closed, so that it cannot come true any more.
            InvalidConfig: No status has that name.
            WrongEventLoop: The handle is open on another event loop.
            AioembedError: The load failed or its download was cancelled, and only another load
                could change that: this is its error.
        """
        wanted = condition if callable(condition) else _status(condition)
        if wanted is Status.READY and self._loads_on_call():
            self._open()
            await self._loaded()
        load = self._load
        async for state in self.states():
            if wanted(state) if callable(wanted) else state.status is wanted:
                return state
            if wanted is Status.CLOSED:
                continue
            if state.status is Status.FAILED and state.error is not None:
                raise state.error.with_traceback(None)
            if load is not None and load.done and isinstance(load.error, DownloadCancelled):
                raise load.error.with_traceback(None)
            load = self._load
        raise ModelClosed("the model was closed before the awaited state came")

    # --- opening and closing

    async def __aenter__(self) -> Self:
        self._open()
        if self._entered:
            raise InvalidConfig(f"{self!r} is in use by another `async with` already")
        self._entered = True
        if not self._prevent_load:
            self._start_load()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def load(self) -> None:
        """Fetch and load the model; return immediately if it is loaded.

        Concurrent callers share one load. After an error, or after `aclose`, call it again to
        load again. The load ends when the last caller is cancelled, unless an `async with` asked
        for it as well; what was downloaded is kept.

        Raises:
            ResourceError: The model's files could not be fetched; `DownloadCancelled` where
                `cancel_download` ended the download.
            ModelError: The file or the program in it is at fault.
            TokenizerError: A text model's tokenizer is missing or does not belong to it.
            MissingExtra: A text model, and `tokenizers` is not installed.
            InvalidConfig: The size of the thread pool can no longer change.
            ModelClosed: The handle was closed meanwhile.
            WrongEventLoop: The handle is open on another event loop.
            InternalError: An unexpected error; its cause says which.
        """
        self._open()
        await self._loaded()

    async def sleep(self) -> None:
        """Unload the model when the calls that run have ended; the next call wakes it.

        Calls that come meanwhile wait, and wake it again. A model that is not loaded stays as it
        is.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        session = self._session
        if session is None or self._close is not None:
            return
        if self._sleep is None or self._sleep.done:
            fall_asleep = partial(self._fall_asleep, session)
            self._sleep = spawn(fall_asleep, name=f"aioembed sleep {self._spec.name}")
        await self._sleep.wait()

    def load_on_call(self, admit: Admit) -> Callable[[], None]:
        """Let calls load the model, each load when `admit` lets it: what `ModelPool` is built on.

        The model counts as asleep until it is called. A handle that is closed is opened.

        Args:
            admit: Awaited before each load, once the model's files are there, with the bytes of
                its program and copies. What it returns receives the measured memory, and hears of
                its end. What it raises is the load's error.

        Returns:
            A function that ends this for later loads.

        Raises:
            InvalidConfig: The model is loaded or being loaded, or its loads are admitted already.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._open()
        if self._admit is not None:
            raise InvalidConfig(f"{self!r} is in a pool already: a model can be in one")
        if self._session is not None or (self._load is not None and not self._load.done):
            raise InvalidConfig(f"{self!r} is loaded already: a pool takes models that are not")
        self._admit = admit
        self._lifecycle.update(is_asleep=self._lifecycle.status is Status.IDLE)

        def end() -> None:
            self._admit = None
            if self._slept is None and self._lifecycle.status is Status.IDLE:
                self._lifecycle.update(is_asleep=False)

        return end

    def pause_download(self) -> None:
        """Pause the download: the connection is closed, and what arrived is kept.

        Raises:
            NotActive: No download is under way.
            AlreadyPaused: It is paused.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        self._loader.pause()

    def resume_download(self) -> None:
        """Go on with a paused download.

        Raises:
            NotActive: No download is under way.
            AlreadyOngoing: It is not paused.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        self._loader.resume()

    def cancel_download(self) -> None:
        """End the download: who waits for it gets `DownloadCancelled`, the model is idle again.

        What arrived is kept, and `load` goes on from there.

        Raises:
            NotActive: No download is under way.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        self._loader.cancel()

    async def aclose(self) -> None:
        """Wait for the inference in flight, refuse what waits, and free the memory.

        Idempotent; concurrent callers return together. `load` or `async with` opens the handle
        again.

        Raises:
            WrongEventLoop: The handle is open on another event loop.
        """
        if self._has_lost_its_loop():
            self._move_home()
        self._check_loop()
        while self._lifecycle.status is not Status.CLOSED:
            if self._close is None or self._close.done:
                self._home = current_loop()
                try:
                    self._close = spawn(self._shut_down, name=f"aioembed close {self._spec.name}")
                except ModelClosed:  # trio's run is ending, which waits for this caller alone
                    await to_end(self._shut_down)
                    break
            close = self._close
            with anyio.CancelScope(shield=True):
                await close.wait()
            if isinstance(close.error, Exception):
                raise close.error
            if close.result:
                break

    # --- embedding

    async def forward(self, item: InputT, *, timeout: float | None = None) -> Embedding:
        """Embed one item; subclasses say what it may be."""
        self._check_loop()
        _check_timeout(timeout)
        self._calls.check_room()
        with self._calls.counted() as stopwatch:
            if timeout is None:
                return await self._embed(item, stopwatch)
            with anyio.move_on_after(timeout):
                return await self._embed(item, stopwatch)
            raise ForwardTimeout(
                f"no embedding within {timeout:g} s: allow more, or lower max_pending so that "
                "calls are refused earlier"
            )

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
        is closed meanwhile or lost by the runtime, or memory runs out, the iteration raises that.

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
            InvalidConfig: `concurrency` is not a number of at least 1.
            InvalidUserInput: `items` is not an iterable, or is one item.
            WrongEventLoop: The handle is open on another event loop.
        """
        self._check_loop()
        wanted = _STREAM_CONCURRENCY if concurrency is None else concurrency
        check_count("concurrency", wanted)
        pairs = keyed_items(items, keyed=keyed, skip=skip)

        async def begin() -> None:
            self._check_loop()
            await self._ready_session()

        def start() -> Pipeline[Any, InputT]:
            pipeline = Pipeline(
                pairs,
                begin=begin,
                embed=self._embed_when_admitted,
                is_fatal=self._is_fatal,
                on_end=self._streams.discard,
                ordered=ordered,
                concurrency=min(wanted, self._calls.most),
            )
            self._streams.add(pipeline)
            return pipeline

        return EmbeddingStream(start, self._check_loop)

    async def forward_batch(self, items: Iterable[InputT]) -> Embeddings:
        """Embed several items.

        Args:
            items: What `forward` takes each. An array of images is uint8 `(n, height, width, 3)`.

        Returns:
            float32 `(n, embedding_dim)`, rows of length 1 in the order of the items.

        Raises:
            BatchItemFailed: One of them failed; the others are given up. `embed_stream` keeps
                their vectors.
            InvalidUserInput: `items` is not an iterable, or is one item.
            ModelNotLoaded: No load was started.
            ModelClosed: The handle was closed.
            WrongEventLoop: The handle is open on another event loop.
            AioembedError: The load that this call waited for failed.
        """
        if not is_iterable_of_items(items, Iterable):
            raise InvalidUserInput(
                f"a {type(items).__name__} is not an iterable of items: pass a list of them"
            )
        listed = list(items)
        self._check_loop()
        await self._ready_session()
        rows = np.empty((len(listed), self.embedding_dim), np.float32)
        async with self.embed_stream(listed, ordered=False) as results:
            async for result in results:
                if isinstance(result, Err):
                    raise _batch_failure(result, listed[result.key]) from result.error
                rows[result.key] = result.embedding
        return rows

    def statistics(self) -> Statistics:
        """Return what has been done since the handle was made, as a frozen value."""
        return self._calls.statistics()

    # --- what is known once loaded

    @property
    def embedding_dim(self) -> int:
        """Values per vector.

        Raises:
            ModelNotLoaded: Not loaded, and the model's spec does not say.
        """
        if self._session is None and self._spec.embedding_dim is not None:
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

    @property
    def _contract(self) -> ModelContract:
        contract = self._slept if self._session is None else self._session.model.contract
        if contract is None:
            raise ModelNotLoaded("the model is not loaded: await load() first")
        return contract

    # --- which event loop

    def _is_open(self) -> bool:
        """Whether anything of the handle lives on its event loop."""
        is_loading = self._load is not None and not self._load.done
        return self._entered or is_loading or self._session is not None or self._close is not None

    def _has_lost_its_loop(self) -> bool:
        """Whether the handle was left open on an event loop that has ended."""
        return self._is_open() and self._home is not current_loop() and has_ended(self._home)

    def _check_loop(self) -> None:
        """Refuse a call from another event loop than the one that the handle is open on."""
        if not self._is_open() or (loop := current_loop()) is self._home:
            return
        if has_ended(self._home):
            raise WrongEventLoop(
                f"the event loop that {self!r} was opened on has ended: await load(), or use "
                "`async with`, to open it on this one"
            )
        if loop is None and is_stopped(self._home):
            return
        raise WrongEventLoop(
            f"{self!r} is open on another event loop, where alone it can be used: call it there, "
            "from another thread with anyio.from_thread.BlockingPortal, or open a handle for each "
            "event loop"
        )

    def _open(self) -> None:
        """Make the caller's event loop the handle's, if it is not open on another."""
        if self._has_lost_its_loop():
            self._move_home()
        self._check_loop()
        if self._close is not None:
            raise ModelClosed(f"{self!r} is being closed: wait for aclose() to return")
        self._home = current_loop()
        if self._lifecycle.status is Status.CLOSED:
            is_asleep = self._admit is not None
            self._lifecycle.move(Status.IDLE, is_asleep=is_asleep, **_NOTHING_DONE)

    def _move_home(self) -> None:
        """Go on after the event loop ended with the handle open: what ran there ended with it."""
        self._home = current_loop()
        self._entered = False
        self._load = self._close = self._idle_watch = self._sleep = self._unused = None
        self._load_wanted = self._running_calls = 0
        self._streams.clear()
        if self._session is not None:
            self._session = self._make_session(self._session.model)
            self._watch_for_idleness(self._session)
            if self._lifecycle.status is Status.GENERATING:
                self._lifecycle.move(Status.READY)
        elif self._lifecycle.status in {Status.DOWNLOADING, Status.LOADING}:
            self._back_to_idle()

    # --- the load

    async def _ready_session(self) -> Session:
        """Return the session, once the load that was asked for has come to it."""
        if self._sleep is not None and not self._sleep.done:
            await self._sleep.wait()
        if self._session is not None and self._close is None:
            return self._session
        if self._close is not None or self._lifecycle.status is Status.CLOSED:
            raise ModelClosed(f"{self!r}: await load(), or use `async with`, to open it again")
        if self._loads_on_call():
            self._open()
            return await self._loaded()
        if self._load is None or self._load.done or self._load.is_cancelled:
            error = self.state.error
            if error is not None:
                raise error.with_traceback(None)
            raise ModelNotLoaded("no load was started: await load(), or use `async with`")
        return await self._loaded()

    def _loads_on_call(self) -> bool:
        """Whether a call loads the model: one that sleeps, or is in a pool."""
        can_load = self._lifecycle.status not in {Status.FAILED, Status.CLOSED}
        return can_load and (self._slept is not None or self._admit is not None)

    async def _loaded(self) -> Session:
        """Return the session; start the load, or wait for the one that is under way."""
        while self._session is None:
            if self._close is not None or self._lifecycle.status is Status.CLOSED:
                raise ModelClosed(f"{self!r} was closed while it was being loaded")
            load = self._start_load()
            self._load_wanted += 1
            try:
                await load.wait()
            finally:
                self._load_wanted -= 1
                self._tell_unused()
                if not self._load_wanted and not self._mount_wants_load():
                    load.cancel()
            if isinstance(load.error, AioembedError):
                raise load.error.with_traceback(None)
        return self._session

    def _mount_wants_load(self) -> bool:
        return self._entered and not self._prevent_load

    def _start_load(self) -> Task[None]:
        """Return the load that is under way; start one where there is none."""
        if self._session is None and (self._load is None or self._load.done):
            self._load = spawn(self._run_load, name=f"aioembed load {self._spec.name}")
        assert self._load is not None  # noqa: S101  # there is no session without one
        return self._load

    async def _run_load(self) -> None:
        lifecycle = self._lifecycle
        if lifecycle.status is Status.FAILED:
            lifecycle.move(Status.IDLE, **_NOTHING_DONE)
        try:
            model = await self._loader.load(self._admitted)
            self._session = self._make_session(model)
            self._slept = None
            if self._admission is not None and self._admission.measured and model.memory:
                self._admission.measured(model.memory)
            lifecycle.move(Status.READY)
            self._watch_for_idleness(self._session)
        except DownloadCancelled:
            self._back_to_idle()
            raise
        except Exception as exc:
            self._memory_is_free()
            error = exc if isinstance(exc, AioembedError) else InternalError.of(exc)
            _logger.log(
                logging.DEBUG if error is exc else logging.ERROR,
                "the load of %s failed; the state says why",
                self._spec.name,
                exc_info=exc,
            )
            _free_locals(error)
            self._slept = None
            lifecycle.move(Status.FAILED, error=error)
            raise error from error.__cause__
        except BaseException:
            self._memory_is_free()
            if lifecycle.status is not Status.IDLE:
                self._back_to_idle()
            raise

    async def _admitted(self, size: int) -> bool:
        """Wait until a model of that size may be loaded; return whether to measure its memory."""
        if self._admit is None:
            return False
        self._admission = await self._admit(size)
        return self._admission.measured is not None

    def _memory_is_free(self) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.release()

    async def _unload(self, session: Session) -> None:
        await session.batcher.aclose()
        await BlockingCall(session.model.close).run()
        self._memory_is_free()

    def _back_to_idle(self) -> None:
        """Leave a load that was cancelled; a model that slept sleeps again."""
        is_asleep = self._slept is not None or self._admit is not None
        self._lifecycle.move(Status.IDLE, is_paused=False, is_asleep=is_asleep)

    def _watch_for_idleness(self, session: Session) -> None:
        """Put the model to sleep when it was not used for as long as the options say."""
        timeout = self._options.idle_seconds(wakes_quickly=session.model.wakes_quickly)
        if timeout is None or self._session is not session:
            return
        if self._idle_watch is not None:
            self._idle_watch.cancel()
        self._unused_since = time.monotonic()
        with suppress(ModelClosed):  # the event loop is ending
            watch = partial(self._sleep_when_unused, session, timeout)
            self._idle_watch = spawn(watch, name=f"aioembed idle {self._spec.name}")

    async def _sleep_when_unused(self, session: Session, timeout: float) -> None:
        while self._session is session and self._close is None:
            left = self._unused_since + timeout - time.monotonic()
            if self._calls.pending or self._lifecycle.status is Status.GENERATING:
                left = timeout
            if left > 0:
                await anyio.sleep(left)
            else:
                await self.sleep()

    async def _fall_asleep(self, session: Session) -> None:
        while self._session is session and not self._is_unused():
            self._unused = anyio.Event()
            await self._unused.wait()
        if self._session is session:
            self._slept, self._session = session.model.contract, None
            self._lifecycle.move(Status.IDLE, is_asleep=True)
            await to_end(partial(self._unload, session))

    def _is_unused(self) -> bool:
        """Whether no call runs or is about to; those that come now wait for the sleep."""
        is_resting = self._lifecycle.status is not Status.GENERATING
        return is_resting and not (self._running_calls or self._load_wanted)

    def _tell_unused(self) -> None:
        if self._unused is not None and (self._session is None or self._is_unused()):
            self._unused.set()

    def _make_session(self, model: LoadedModel) -> Session:
        copies, max_batch = len(model.programs), model.contract.max_batch
        decoders = self._options.threads.preprocess or available_cpus()
        return Session(
            model=model,
            batcher=Batcher(
                partial(_run_jobs, model),
                workers=model.programs,
                max_batch=max_batch,
                max_wait=self._queueing.max_wait,
                on_running=self._on_running,
                is_lost=lambda error: isinstance(error, ProgramLost),
                on_lost=self._on_lost,
            ),
            prepared=anyio.Semaphore(decoders + (copies + 1) * max_batch, fast_acquire=True),
            fetched=anyio.Semaphore(_MOST_FETCHED, fast_acquire=True),
            decoders=anyio.CapacityLimiter(decoders),
        )

    def _on_running(self, batches: int) -> None:
        if self._lifecycle.status in {Status.READY, Status.GENERATING}:
            status = Status.GENERATING if batches else Status.READY
            if status is not self._lifecycle.status:
                self._lifecycle.move(status)
                self._tell_unused()

    def _on_lost(self, error: Exception) -> None:
        """Give the model up: the runtime dropped its program in the middle of a run."""
        session, self._session = self._session, None
        if session is not None:
            spawn(partial(self._unload, session), name="aioembed free a lost model")
            _free_locals(error)
            self._lifecycle.move(Status.FAILED, error=error)
            self._tell_unused()

    # --- the close

    async def _shut_down(self) -> bool:
        """Close everything, and return True: the task may be cancelled before its first step."""
        try:
            for stream in list(self._streams):
                await stream.close()
            for task in (self._load, self._idle_watch, self._sleep):
                if task is not None:
                    task.cancel()
                    await task.wait()
            if self._session is not None:
                await self._unload(self._session)
            await self._release()
        finally:
            self._session = self._load = self._close = self._idle_watch = self._slept = None
            self._sleep = None
            self._entered = False
            self._lifecycle.move(Status.CLOSED, queue_depth=0)
        return True

    async def _release(self) -> None:
        """Free what a subclass holds; it may be used again afterwards."""

    # --- a call

    @abstractmethod
    async def _prepare(self, item: InputT, session: Session, stopwatch: Stopwatch) -> Inputs:
        """Turn an item into the program's inputs, in worker threads within `session.decoders`."""

    async def _obtain(self, item: InputT, stopwatch: Stopwatch) -> InputT:  # noqa: ARG002
        """Fetch what the item names elsewhere; nothing, unless a subclass says so."""
        return item

    async def _embed(self, item: InputT, stopwatch: Stopwatch) -> Embedding:
        session = await self._ready_session()
        stopwatch.restart()
        has_to_wait = not session.fetched.value
        async with session.fetched:
            if has_to_wait:
                session = await self._ready_session()  # another where the model slept meanwhile
            self._count_running(1)
            try:
                obtained = await self._obtain(item, stopwatch)
                await session.prepared.acquire()
            except BaseException:
                self._count_running(-1)
                raise
        try:
            inputs = await self._prepare(obtained, session, stopwatch)
            return await session.batcher.submit(_Job(inputs, stopwatch))
        finally:
            session.prepared.release()
            self._count_running(-1)

    def _count_running(self, change: int) -> None:
        self._running_calls += change
        self._tell_unused()

    async def _embed_when_admitted(self, item: InputT) -> Embedding:
        """Embed one item as soon as there is room for it."""
        await self._calls.wait_for_room()
        with self._calls.counted() as stopwatch:
            return await self._embed(item, stopwatch)

    def _is_fatal(self, error: Exception) -> bool:
        """Whether an error of one item means that no other can be embedded either."""
        return isinstance(error, ModelNotLoaded | WrongEventLoop) or error is self.state.error

    def _on_pending(self, pending: int) -> None:
        if not pending:
            self._unused_since = time.monotonic()
        if self._lifecycle.status is not Status.CLOSED:
            self._lifecycle.update(queue_depth=pending)


_NOTHING_DONE: dict[str, Any] = {
    "error": None,
    "download_progress": 0.0,
    "downloaded_bytes": 0,
    "total_bytes": None,
    "download_rate": 0.0,
    "download_eta": None,
    "is_paused": False,
}


async def _run_jobs(model: LoadedModel, program: Program, jobs: Sequence[_Job]) -> list[Embedding]:
    """Run a model on a batch, and note in each item's stopwatch how long it took."""
    began = time.perf_counter()
    embeddings = await model.run(program, [job.inputs for job in jobs])
    seconds = time.perf_counter() - began
    jobs[0].stopwatch.leads = True
    for job in jobs:
        job.stopwatch.batch_size = len(jobs)
        job.stopwatch.add("inference", seconds)
    return embeddings


def _free_locals(error: BaseException) -> None:
    """Let an error that is kept, and its causes, not keep alive what their frames worked on."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _batch_failure(failure: Err[int], item: object) -> BatchItemFailed:
    name = shorten(item) if isinstance(item, str | os.PathLike) else f"a {type(item).__name__}"
    return BatchItemFailed(
        f"item {failure.key} ({name}) cannot be embedded: {failure.error}",
        index=failure.key,
        error=failure.error,
    )


def _status(name: object) -> Status:
    try:
        return Status(name)  # type: ignore[arg-type]  # refuses what is not a string, too
    except ValueError:
        near = difflib.get_close_matches(str(name), list(Status), n=2) or list(Status)
        names = " or ".join(repr(str(status)) for status in near)
        raise InvalidConfig(f"{shorten(name)} is not a status: did you mean {names}?") from None


def _check_timeout(timeout: object) -> None:
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
        raise InvalidConfig(f"timeout must be a positive number of seconds, not {timeout!r}")
