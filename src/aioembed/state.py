"""The life of a model: its states, the one table of legal moves, and the snapshot users see."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, ClassVar

import anyio
from anyio.lowlevel import checkpoint
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from ._tasks import call_interruptibly, call_soon
from .errors import AioembedError, IllegalStateMove

__all__ = ["LEGAL_MOVES", "Lifecycle", "ModelState", "Status"]


_logger = logging.getLogger("aioembed.state")


class Status(StrEnum):
    """Where a model is in its life."""

    IDLE = "idle"
    """Nothing has been started, a load was cancelled, or the model sleeps."""
    DOWNLOADING = "downloading"
    """The model's files are being fetched, or a paused fetch waits to go on."""
    LOADING = "loading"
    """The files are there; the runtime prepares the program."""
    READY = "ready"
    """Loaded, and no inference is running."""
    GENERATING = "generating"
    """Loaded, and an inference is running."""
    FAILED = "failed"
    """The last load failed, or the runtime gave the program up; `load()` tries again."""
    CLOSED = "closed"
    """Closed; `load()` or `async with` opens the handle again."""


_S = Status
LEGAL_MOVES = MappingProxyType(
    {
        _S.IDLE: frozenset({_S.DOWNLOADING, _S.LOADING, _S.FAILED, _S.CLOSED}),
        _S.DOWNLOADING: frozenset({_S.LOADING, _S.IDLE, _S.FAILED, _S.CLOSED}),
        _S.LOADING: frozenset({_S.READY, _S.IDLE, _S.FAILED, _S.CLOSED}),
        _S.READY: frozenset({_S.GENERATING, _S.IDLE, _S.FAILED, _S.CLOSED}),
        _S.GENERATING: frozenset({_S.READY, _S.FAILED, _S.CLOSED}),
        _S.FAILED: frozenset({_S.IDLE, _S.DOWNLOADING, _S.LOADING, _S.CLOSED}),
        _S.CLOSED: frozenset({_S.IDLE}),
    }
)
"""Which states each state may move to; drawn in the documentation from this table."""


class ModelState(BaseModel):
    """What a model is doing, as one frozen value; equal states are the same object until a change.

    Attributes:
        status: Where the model is in its life.
        download_progress: 0 to 1; never goes back within a load; 1 once the files are there.
        downloaded_bytes: Bytes of the model's files that are on disk.
        total_bytes: Bytes in all, None where no server said.
        download_rate: Bytes per second over the last seconds.
        download_eta: Seconds until the download ends at that rate, None where unknown.
        is_paused: Whether the download is paused.
        queue_depth: Calls of `forward` that wait or run.
        error: Why the last load failed, or why the runtime gave the program up.
        is_asleep: Whether the model is not in memory and the next call loads it: nobody used it for
            a while, or a `ModelPool` needed its memory.
        is_waking: Whether a model that slept is being loaded; calls wait for it.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    status: Status = Status.IDLE
    download_progress: float = Field(default=0.0, ge=0.0, le=1.0)
    downloaded_bytes: int = 0
    total_bytes: int | None = None
    download_rate: float = 0.0
    download_eta: float | None = None
    is_paused: bool = False
    queue_depth: int = 0
    error: Annotated[AioembedError | None, SkipValidation] = None
    is_asleep: bool = False
    is_waking: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded: `ready` or `generating`."""
        return self.status in {Status.READY, Status.GENERATING}

    @property
    def is_generating(self) -> bool:
        """Whether an inference is running."""
        return self.status is Status.GENERATING


class Lifecycle:
    """The observable state of one model. `move` is the only thing that changes its status.

    Observers are called in order and read the latest value: a callback takes no arguments, so
    however many changes fall together, what it reads is current. A change made inside a callback
    starts another round after the present one. Moves are published immediately, mere figures at
    most once per turn of the event loop. Everything but reading belongs to one thread.
    """

    def __init__(self) -> None:
        self._value = self._published = ModelState()
        self._figures: dict[str, object] = {}
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], object]] = {}
        self._changed: anyio.Event | None = None
        self._closed: ModelState | None = None
        self._scheduled = False
        self._notifying = False
        self._stale = False

    @property
    def value(self) -> ModelState:
        """The current value: the same object until something changes. For any thread."""
        with self._lock:
            if self._figures:
                figures, self._figures = self._figures, {}
                if any(getattr(self._value, name) != new for name, new in figures.items()):
                    self._value = self._value.model_copy(update=figures)
            return self._value

    @property
    def status(self) -> Status:
        """The current status."""
        return self._value.status

    def move(self, status: Status, **changes: object) -> None:
        """Go to another status, together with other changes of the snapshot.

        Args:
            status: One that the table allows from here.
            **changes: Fields of `ModelState` that change in the same step. `is_asleep` is false
                unless it is among them; `is_waking` follows from the moves.

        Raises:
            IllegalStateMove: The table does not have the move; nothing was changed.
        """
        if status not in LEGAL_MOVES[self.status]:
            raise IllegalStateMove(f"a model cannot go from {self.status} to {status}")
        before = self.value
        is_load = status in {Status.DOWNLOADING, Status.LOADING}
        is_waking = is_load and (before.is_asleep or before.is_waking)
        with self._lock:
            self._figures.update({"is_asleep": False} | changes, is_waking=is_waking, status=status)
        value = self.value
        if status is Status.CLOSED:
            self._closed = value
        self._publish()

    def update(self, **figures: object) -> None:
        """Change fields other than the status; observers hear of it in the loop's next turn."""
        with self._lock:
            self._figures.update(figures)
        if (self._callbacks or self._changed) and not self._scheduled:
            self._scheduled = call_soon(self._publish_figures)
            if not self._scheduled:  # outside of an event loop
                self._publish_figures()

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, without arguments, after every change.

        Args:
            callback: Reads `value` itself. If it raises, that is logged and does not affect the
                others.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def values(self, check: Callable[[], object] = lambda: None) -> AsyncIterator[ModelState]:
        """Iterate over the current value and then the latest ones, up to the next `closed`.

        A reader that is slower than the changes skips the ones in between and delays nobody else.
        Leaving the loop early needs no clean-up.

        Args:
            check: Called before each step; may raise.
        """
        return _Values(self, check)

    def _publish_figures(self) -> None:
        if self.value is not self._published:
            self._publish()
        self._scheduled = False

    def _publish(self) -> None:
        self._scheduled = False
        self._published = self.value
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        self._stale = True
        if self._notifying:
            return
        self._notifying = True
        try:
            while self._stale:
                self._stale = False
                self._notify()
        finally:
            self._notifying = False

    def _notify(self) -> None:
        for key, callback in list(self._callbacks.items()):
            if key not in self._callbacks:
                continue
            try:
                call_interruptibly(callback)
            except Exception:
                _logger.exception("an observer raised; the others are called all the same")

    async def wait_changed(self, seen: ModelState) -> ModelState:
        """Wait until the value is another object than `seen`, and return it.

        If the model was closed meanwhile, that state is returned, whatever followed.
        """
        closed = self._closed
        while self.value is seen:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self._closed if self._closed is not closed and self._closed else self.value


class _Values(AsyncIterator[ModelState]):
    """A reader's own place; no generator, so that leaving it early leaves nothing to finalise."""

    def __init__(self, source: Lifecycle, check: Callable[[], object]) -> None:
        self._source = source
        self._check = check
        self._seen: ModelState | None = None

    async def __anext__(self) -> ModelState:
        self._check()
        if self._seen is None:
            await checkpoint()
            self._seen = self._source.value
        elif self._seen.status is Status.CLOSED:
            raise StopAsyncIteration
        else:
            self._seen = await self._source.wait_changed(self._seen)
        return self._seen
