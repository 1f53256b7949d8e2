"""The models that a server has: by name and modality, loaded while the application runs."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import cast

import anyio

from aioembed.errors import AioembedError, InvalidConfig, ModelNotLoaded, shorten
from aioembed.image import ImageEmbeddings
from aioembed.models import Modality
from aioembed.pool import ModelPool
from aioembed.state import ModelState, Status
from aioembed.text import TextEmbeddings

from .problems import Problem, code_of
from .schemas import Condition, ModelCard, ModelList, ModelSnapshot, StateError, States

__all__ = ["Handle", "Models", "ModelsArgument", "Served"]

_logger = logging.getLogger("aioembed.server")

Handle = ImageEmbeddings | TextEmbeddings
ModelsArgument = Handle | Iterable[Handle] | Mapping[str, Handle | Iterable[Handle]]
"""One model, several, or models by the name that clients give; the image and the text model of
one checkpoint may share a name."""

_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """One model under the name that clients give."""

    name: str
    handle: Handle

    @property
    def modality(self) -> Modality:
        """What it embeds."""
        return self.handle.modality

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered: one that sleeps is loaded for them."""
        state = self.handle.state
        return state.is_ready or state.is_asleep or state.is_waking

    async def become_known(self) -> None:
        """Load the model if it was never loaded, so that its space and dimension are known.

        Raises:
            AioembedError: It cannot be loaded.
        """
        try:
            _ = self.handle.space
        except ModelNotLoaded:
            await self.handle.load()

    def snapshot(self, *, with_reason: bool) -> ModelSnapshot:
        """Return what it is doing; the reason of a failed load may name files of the server."""
        state = self.handle.state
        error = None
        if state.error is not None:
            message = str(state.error) if with_reason else "the server's log says why"
            error = StateError(code=code_of(state.error), message=message)
        return ModelSnapshot(
            name=self.name,
            modality=self.modality,
            is_ready=self.is_ready,
            is_generating=state.is_generating,
            error=error,
            **state.model_dump(exclude={"error"}),
        )


class Models:
    """The models of an application, shared by `lifespan`, `router` and its own routes.

    Args:
        models: Handles, which serve one run of the application; or a function
            that makes them, called at each start.
        max_memory: Bytes that loaded models may take, as for `ModelPool`: models are loaded when
            they are asked for, and sleep where others need their memory. None loads all of them
            at the start.
        preload: Names of models that are loaded at the start, where `max_memory` is given.

    Raises:
        InvalidConfig: No model, two of one name and modality, or `preload` without `max_memory`.

    Example:
        ```python
        models = Models(lambda: ImageEmbeddings("clip-vit-base-patch32-image"))
        app = FastAPI(lifespan=lifespan(models))
        app.include_router(router(models), prefix="/embed")
        ```
    """

    def __init__(
        self,
        models: ModelsArgument | Callable[[], ModelsArgument],
        *,
        max_memory: int | None = None,
        preload: Iterable[str] = (),
    ) -> None:
        self._make = models if callable(models) else None
        self._max_memory = max_memory
        self._preload = frozenset(preload)
        if self._preload and max_memory is None:
            raise InvalidConfig("preload goes with max_memory: without it all models are loaded")
        self._served: dict[tuple[str, Modality], Served] = {}
        self._created = int(time.time())
        self._is_running = False
        self._starters: list[Callable[[Models], Callable[[], None]]] = []
        if not callable(models):
            self._served = _by_name(models)

    @classmethod
    def of(cls, models: Models | ModelsArgument | Callable[[], ModelsArgument]) -> Models:
        """Return `models`, made one of these where it is none."""
        return models if isinstance(models, Models) else cls(models)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def on_start(self, starter: Callable[[Models], Callable[[], None]]) -> None:
        """Call a function at each start of the application, and what it returns at its end."""
        self._starters.append(starter)

    def image(self, name: str | None = None) -> ImageEmbeddings:
        """Return an image model, for an application's own routes.

        Args:
            name: The first where None.

        Raises:
            InvalidConfig: There is none, or the application has not started.
        """
        return cast("ImageEmbeddings", self._handle("image", name))

    def text(self, name: str | None = None) -> TextEmbeddings:
        """Return a text model; as `image`."""
        return cast("TextEmbeddings", self._handle("text", name))

    def _handle(self, modality: Modality, name: str | None) -> Handle:
        for one in self:
            if name in {None, one.name} and one.modality == modality:
                return one.handle
        if not self._served:
            raise InvalidConfig("the application has not started: give it lifespan=lifespan(...)")
        raise InvalidConfig(f"there is no {modality} model{f' {name!r}' if name else ''}")

    @asynccontextmanager
    async def running(
        self, *, wait: bool = False, failed: Callable[[AioembedError], object] | None = None
    ) -> AsyncGenerator[None, None]:
        """Load the models, again after a failure, log their states, and close them at the end.

        Args:
            wait: Until all are loaded.
            failed: Called when a load has failed; the model is not loaded again then.

        Raises:
            InvalidConfig: The models were closed when the application stopped before.
            AioembedError: With `wait`, a load failed.
        """
        if self._make is not None:
            self._served = _by_name(self._make())
        for one in self:
            if one.handle.state.status is Status.CLOSED:
                raise InvalidConfig(
                    f"the model {one.name} was closed when the application stopped: to start it "
                    "several times, give it Models(...) with a function that makes the models"
                )
        pool = None if self._max_memory is None else self._pool(self._max_memory)
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(anyio.create_task_group())
            for starter in (*self._starters, _log_states):
                stack.callback(starter(self))
            first = [one for one in self if pool is None or one.name in self._preload]
            if pool is None:
                for one in first:
                    await stack.enter_async_context(one.handle)
            else:
                await stack.enter_async_context(pool)
            for one in self:
                group.start_soon(_keep_loaded, one, failed)
            if wait:
                for one in first:
                    await one.handle.load()
            self._is_running = True
            try:
                yield
            finally:
                self._is_running = False
                group.cancel_scope.cancel()

    def _pool(self, max_memory: int) -> ModelPool[Handle]:
        unknown = self._preload - {one.name for one in self}
        if unknown:
            raise InvalidConfig(f"no model is named {shorten(min(unknown))}, to be preloaded")
        handles = {f"{one.name} ({one.modality})": one.handle for one in self}
        preload = [
            name for name, one in zip(handles, self, strict=True) if one.name in self._preload
        ]
        return ModelPool(handles, max_memory=max_memory, preload=preload)

    def find(self, name: str | None, modality: Modality | None) -> Served:
        """Return the model that a request names; the first that fits where it names none.

        Raises:
            Problem: There is none.
        """
        named = self.named(name)
        fitting = [one for one in named if modality in {None, one.modality}]
        if fitting:
            return fitting[0]
        what = shorten(name) if name else "no model here"
        message = f"{what} embeds {'no ' if name else ''}{modality}s"
        raise Problem(400, message, code="modality_not_supported", param="modality")

    def named(self, name: str | None) -> list[Served]:
        """Return the models of a name: one, or an image and a text model. All where it is None.

        Raises:
            Problem: There is none.
        """
        if not self._served:
            raise _no_lifespan()
        named = [one for one in self if name in {None, one.name}]
        if not named:
            known = ", ".join(dict.fromkeys(one.name for one in self))
            message = f"no model is named {shorten(name)}: known are {known}"
            raise Problem(404, message, code="model_not_found", param="model")
        return named

    def check_ready(self, served: Served) -> None:
        """Refuse a request whose model is not loaded.

        Raises:
            Problem: It is not; Retry-After says when it may be.
        """
        state = served.handle.state
        if served.is_ready:
            return
        if state.status is Status.IDLE and not self._is_running:
            raise _no_lifespan()
        details = f" ({code_of(state.error)}; the server's log says why)" if state.error else ""
        if state.status is Status.DOWNLOADING:
            details = f", {state.download_progress:.0%} are there"
        wait = max(1.0, min(state.download_eta or 1.0, _LONGEST_WAIT))
        raise Problem(
            503,
            f"the model {served.name} is {state.status}{details}: /readyz reports when it is ready",
            code=f"model_{state.status}",
            param="model",
            headers={"Retry-After": f"{wait:.0f}"},
        )

    def cards(self) -> ModelList:
        """Return the list of models as OpenAI has it."""
        names = dict.fromkeys(one.name for one in self)
        return ModelList(data=[self.card(name) for name in names])

    def card(self, name: str) -> ModelCard:
        """Return one model as OpenAI has it.

        Raises:
            Problem: There is none of that name.
        """
        same = self.named(name)
        try:
            dim = same[0].handle.embedding_dim
        except ModelNotLoaded:
            dim = None
        return ModelCard(
            id=name,
            created=self._created,
            modalities=[one.modality for one in same],
            embedding_dim=dim,
            states={one.modality: shown(one.handle.state) for one in same},
        )

    def states(self, *, is_stopping: bool, with_reasons: bool) -> States:
        """Return what every model is doing.

        Args:
            is_stopping: Whether the server stops.
            with_reasons: Whether to say why a load failed, which may name files of the server.
        """
        snapshots = [one.snapshot(with_reason=with_reasons) for one in self]
        ready = not is_stopping and bool(snapshots) and all(one.is_ready for one in snapshots)
        return States(is_ready=ready, is_stopping=is_stopping, models=snapshots)


def _no_lifespan() -> Problem:
    return Problem(
        503,
        "the models were never started: give the application lifespan=lifespan(models), or enter "
        "lifespan(models)(app) in its own lifespan",
        code="lifespan_missing",
    )


def shown(state: ModelState) -> Condition:
    """Return what a model is doing, for logs and clients."""
    return "asleep" if state.is_asleep else "waking" if state.is_waking else state.status


def _log_states(models: Models) -> Callable[[], None]:
    """Log every change of a model's status; return what ends that."""
    ends = ExitStack()
    for one in models:
        ends.callback(_log_states_of(one))
    return ends.close


def _log_states_of(one: Served) -> Callable[[], None]:
    last: str = shown(one.handle.state)

    def changed() -> None:
        nonlocal last
        status = shown(one.handle.state)
        # An inference begins and ends with every batch.
        if status is not last and Status.GENERATING not in {status, last}:
            _logger.info("%s (%s): %s", one.name, one.modality, status)
        last = status

    return one.handle.subscribe(changed)


async def _keep_loaded(one: Served, failed: Callable[[AioembedError], object] | None) -> None:
    """Load a model again after each failure, waiting longer each time."""
    changed = anyio.Event()

    def wake() -> None:
        changed.set()

    unsubscribe = one.handle.subscribe(wake)
    delay = _FIRST_RETRY_SECONDS
    try:
        while True:
            changed = anyio.Event()
            state = one.handle.state
            if state.is_ready:
                delay = _FIRST_RETRY_SECONDS
            if state.status is not Status.FAILED or state.error is None:
                await changed.wait()
                continue
            if failed is not None:
                _logger.error("%s (%s) cannot be loaded: %s", one.name, one.modality, state.error)
                failed(state.error)
                return
            _logger.error(
                "%s (%s) cannot be loaded: %s; trying again in %g s",
                *(one.name, one.modality, state.error, delay),
            )
            await anyio.sleep(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
            try:
                await one.handle.load()
            except AioembedError as exc:
                _logger.debug("%s failed to load again: %s", one.name, exc)  # see its state
    finally:
        unsubscribe()


def _by_name(models: ModelsArgument) -> dict[tuple[str, Modality], Served]:
    found: dict[tuple[str, Modality], Served] = {}
    for name, handle in _named(models):
        key = (name, handle.modality)
        if key in found:
            raise InvalidConfig(f"two {key[1]} models are named {name!r}: give them names")
        found[key] = Served(name, handle)
    if not found:
        raise InvalidConfig("a server needs at least one model")
    return found


def _named(models: ModelsArgument) -> Iterator[tuple[str, Handle]]:
    if isinstance(models, Mapping):
        for name, given in models.items():
            yield from ((name, handle) for handle in _several(given))
    else:
        yield from ((handle.spec.name, handle) for handle in _several(models))


def _several(given: Handle | Iterable[Handle]) -> Iterable[Handle]:
    return given if isinstance(given, Iterable) else (given,)
