"""Many models by name in bounded memory: loaded when they are called, asleep when they are not."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar

import anyio

from ._tasks import Loop, Task, current_loop, spawn, to_end
from .errors import (
    AioembedError,
    InvalidConfig,
    ModelClosed,
    ModelTooLarge,
    UnknownModel,
    WrongEventLoop,
    shorten,
)
from .handle import Admission, EmbeddingHandle
from .state import ModelState

__all__ = ["ModelPool"]

HandleT = TypeVar("HandleT", bound=EmbeddingHandle[Any])

_MEBI = 1 << 20
_NOISE = 8 << 20
"""Bytes by which a process grows and shrinks anyway."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A model that waits for memory to be loaded into."""

    name: str
    size: int
    granted: anyio.Event = field(default_factory=anyio.Event)


class ModelPool(Generic[HandleT]):
    """Models by name that together take bounded memory. Making one does no I/O.

    Inside `async with` the models are used as usual, as `pool[name]` or by their own names:
    a call loads its model if it is not loaded. Where memory is short, unused models are put to
    sleep first, in the order of their last use; they wake when they are called again. Where all
    are in use, models take turns: one that makes room finishes its running calls, and its later
    calls wait until it is loaded again. A busy model does not make another wait indefinitely.

    A model counts for the size of its program, once for each copy that does not share packed
    weights, and, once it was loaded while the others rested, for what the process grew by: its
    first loads run it once on its largest input. A model that is being loaded counts already.

    Args:
        models: Handles that are not loaded, by the name that the pool gives them.
        max_memory: Bytes that loaded models may take.
        preload: Names of models that are loaded as soon as the pool is entered, in this order.

    Raises:
        InvalidConfig: No model, one handle under two names, or memory that is not a positive
            number of bytes.
        UnknownModel: A model to be preloaded is none of the pool's.

    Example:
        ```python
        models = {"photos": ImageEmbeddings(PHOTOS), "drawings": ImageEmbeddings(DRAWINGS)}
        async with ModelPool(models, max_memory=500_000_000) as pool:
            vector = await pool["photos"].forward("cat.jpg")
        ```
    """

    def __init__(
        self, models: Mapping[str, HandleT], *, max_memory: int, preload: Iterable[str] = ()
    ) -> None:
        self._models = _checked(models)
        most: object = max_memory
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise InvalidConfig(f"max_memory must be a positive number of bytes, not {most!r}")
        self._max_memory = max_memory
        self._preload = [self[name] for name in preload]
        self._preloading: Task[None] | None = None

        self._home: Loop | None = None
        self._membership: ExitStack | None = None  # what the pool has asked of its models
        self._is_closing = False
        self._memory: dict[str, int] = {}  # of the models that are loaded, or being loaded
        self._turns: deque[_Turn] = deque()
        self._leaving: set[str] = set()
        self._sizes: dict[str, int] = {}  # that were measured
        self._moves = Counter[str]()  # of each model's state
        self._uses = count(1)
        self._last_use = dict.fromkeys(self._models, 0)
        self._state: Mapping[str, ModelState] = {}

    def __repr__(self) -> str:
        """The names of the models, and how much memory is taken."""
        used, most = (figure // _MEBI for figure in (sum(self._memory.values()), self.max_memory))
        return f"<ModelPool {', '.join(self._models)}: {used} of {most} MiB>"

    def __getitem__(self, name: str) -> HandleT:
        """Return the handle of a model.

        Raises:
            UnknownModel: There is none of that name.
        """
        try:
            return self._models[name]
        except (KeyError, TypeError):
            known = ", ".join(self._models)
            raise UnknownModel(
                f"no model of the pool is named {shorten(name)}: known are {known}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the models' names."""
        return iter(self._models)

    def __len__(self) -> int:
        """How many models there are, loaded or not."""
        return len(self._models)

    # --- observing

    @property
    def max_memory(self) -> int:
        """Bytes that loaded models may take."""
        return self._max_memory

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of each model that is loaded or being loaded.

        Their sum is within `max_memory`, except for a moment: when a model is loaded for the first
        time and takes more than its file, another one is then put to sleep.
        """
        return MappingProxyType(dict(self._memory))

    @property
    def state(self) -> Mapping[str, ModelState]:
        """What every model is doing, by name: the same object until a model's state changes.

        May be read from any thread.
        """
        now = {name: handle.state for name, handle in self._models.items()}
        last = self._state
        if len(last) != len(now) or any(last[name] is not state for name, state in now.items()):
            self._state = last = MappingProxyType(now)
        return last

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback`, without arguments, after every change of a model's state.

        Args:
            callback: As for a handle's `subscribe`.

        Returns:
            A function that ends the subscription.

        Raises:
            WrongEventLoop: The pool is open on another event loop.
        """
        with ExitStack() as ends:
            for handle in self._models.values():
                ends.callback(handle.subscribe(callback))
            return ends.pop_all().close

    # --- opening and closing

    async def __aenter__(self) -> Self:
        if self._membership is not None:
            raise InvalidConfig(f"{self!r} is in use by another `async with` already")
        with ExitStack() as joined:
            for name, handle in self._models.items():
                joined.callback(handle.load_on_call(partial(self._admit, name)))
                joined.callback(handle.subscribe(partial(self._follow, name)))
            self._membership = joined.pop_all()
        self._home = current_loop()
        self._is_closing = False
        if self._preload:
            self._preloading = spawn(self._load_first_ones, name="aioembed preload")
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all models, when the inferences in flight have ended. Idempotent.

        Raises:
            WrongEventLoop: The pool is open on another event loop.
        """
        if self._membership is not None:
            self._check_loop()
            self._is_closing = True
            await to_end(self._close_all)

    async def _close_all(self) -> None:
        if self._preloading is not None:
            self._preloading.cancel()
            await self._preloading.wait()
        for handle in self._models.values():
            await handle.aclose()
        membership, self._membership = self._membership, None
        if membership is not None:
            membership.close()

    async def _load_first_ones(self) -> None:
        for handle in self._preload:
            with suppress(AioembedError):  # its state has it
                await handle.load()

    def _check_loop(self) -> None:
        if current_loop() is not self._home:
            raise WrongEventLoop(f"{self!r} is open on another event loop, where alone it works")

    # --- sharing the memory

    async def _admit(self, name: str, size: int) -> Admission:
        """Wait until a model may be loaded."""
        self._check_loop()
        if size > self._max_memory:
            raise ModelTooLarge(
                f"{shorten(name)} takes {size} bytes, more than the pool's {self._max_memory}: "
                "raise max_memory"
            )
        turn = _Turn(name, self._sizes.get(name, size))
        self._turns.append(turn)
        self._make_room()
        try:
            await turn.granted.wait()
        except BaseException:
            if turn in self._turns:
                self._turns.remove(turn)
                self._make_room()
            else:
                self._give_back(name)
            raise
        resize = partial(self._resize, name, self._moves_beside(name))
        release = partial(self._give_back, name)
        return Admission(release, None if name in self._sizes else resize)

    def _moves_beside(self, name: str) -> int:
        """Return how often the states of other models have changed."""
        return self._moves.total() - self._moves[name]

    def _resize(self, name: str, moves: int, size: int) -> None:
        """Count a model for what it takes, if no other model did anything meanwhile."""
        if moves != self._moves_beside(name):
            return
        if size < self._memory[name] + _NOISE:
            size = self._memory[name]
        self._memory[name] = self._sizes[name] = min(size, self._max_memory)
        self._make_room()

    def _give_back(self, name: str) -> None:
        self._memory.pop(name, None)
        self._leaving.discard(name)
        self._make_room()

    def _follow(self, name: str) -> None:
        self._moves[name] += 1
        if self._models[name].state.queue_depth:
            self._last_use[name] = next(self._uses)
        self._make_room()

    def _make_room(self) -> None:
        """Grant turns, first come first served, and put models to sleep for the next one."""
        while not self._is_closing:
            wanted = self._turns[0].size if self._turns else 0
            missing = wanted + sum(self._memory.values()) - self._max_memory
            if missing > 0:
                missing -= sum(self._memory[name] for name in self._leaving)
                for name in self._least_needed():
                    if missing > 0:
                        missing -= self._memory[name]
                        self._put_to_sleep(name)
                return
            if not self._turns:
                return
            turn = self._turns.popleft()
            self._memory[turn.name] = turn.size
            turn.granted.set()

    def _least_needed(self) -> list[str]:
        """Return the models that can be put to sleep, unused ones first, by their last use.

        Of those in use, the one comes first that was loaded first: it has had its turn.
        """
        state = self.state
        loaded = [name for name in self._memory if state[name].is_ready]
        loaded = [name for name in loaded if name not in self._leaving]
        unused = [name for name in loaded if not state[name].queue_depth]
        in_use = [name for name in loaded if state[name].queue_depth]
        return sorted(unused, key=self._last_use.__getitem__) + in_use

    def _put_to_sleep(self, name: str) -> None:
        """Let a model sleep when its running calls have ended, which gives its memory back."""

        async def sleep() -> None:
            try:
                await self._models[name].sleep()
            finally:
                self._leaving.discard(name)

        self._leaving.add(name)
        try:
            spawn(sleep, name=f"aioembed put {name} to sleep")
        except ModelClosed:  # the event loop is ending
            self._leaving.discard(name)


def _checked(models: Mapping[str, HandleT]) -> dict[str, HandleT]:
    given: object = models
    if not isinstance(given, Mapping) or not given:
        raise InvalidConfig("a pool needs a mapping of names to handles, with at least one")
    for name, handle in given.items():
        if not isinstance(name, str) or not name:
            raise InvalidConfig(f"a model's name must be text, not {name!r}")
        if not isinstance(handle, EmbeddingHandle):
            raise InvalidConfig(
                f"{shorten(name)} is a {type(handle).__name__}: a pool takes ImageEmbeddings and "
                "TextEmbeddings"
            )
    if len({id(handle) for handle in models.values()}) < len(models):
        raise InvalidConfig("two names of the pool are one handle: give each its own handle")
    return dict(models)
