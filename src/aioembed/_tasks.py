"""Background tasks on asyncio and trio, and blocking calls in worker threads."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar, current_token

from .errors import ModelClosed

__all__ = [
    "BlockingCall",
    "Task",
    "call_interruptibly",
    "call_soon",
    "call_soon_on",
    "current_loop",
    "has_ended",
    "is_stopped",
    "run_in_thread",
    "spawn",
    "to_end",
]

_logger = logging.getLogger("aioembed.tasks")

R = TypeVar("R")
Loop: TypeAlias = Any
"""An asyncio event loop, or the token of a trio run: trio may not be installed."""


# --- event loops


def current_loop() -> Loop | None:
    """Return the asyncio loop, or the trio run's token, that this thread is in; None outside."""
    try:
        return current_token().native_token
    except RuntimeError:
        pass
    try:
        return asyncio.get_running_loop()  # in a callback, where there is no task to ask
    except RuntimeError:
        return None


def has_ended(loop: Loop) -> bool:
    """Whether nothing can run on a loop that `current_loop` returned any more."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    try:
        loop.run_sync_soon(_do_nothing)
    except RuntimeError:  # trio.RunFinishedError
        return True
    return False


def _do_nothing() -> None: ...


def is_stopped(loop: Loop) -> bool:
    """Whether a loop is not running at this moment, as between two `run_until_complete`."""
    return isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running()


def call_soon(function: Callable[[], object]) -> bool:
    """Call a function in the next turn of this thread's event loop; return whether there is one."""
    loop = current_loop()
    if loop is None:
        return False
    if isinstance(loop, asyncio.AbstractEventLoop):
        loop.call_soon(function)
    else:
        loop.run_sync_soon(function)
    return True


def call_soon_on(loop: Loop, function: Callable[[], object]) -> None:
    """Call a function on an event loop, from any thread; not where the loop has ended."""
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    with suppress(RuntimeError):
        schedule(function)


def call_interruptibly(function: Callable[[], object]) -> None:
    """Call a function of the user's, so that Ctrl-C ends it wherever it is called.

    In system tasks trio holds Ctrl-C back, and nothing may be raised there. The signal, sent
    again, reaches trio's main task.
    """
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    if lowlevel is None or not lowlevel.currently_ki_protected():
        function()
        return

    def unprotected() -> None:  # trio marks the code of a function, which others may share
        function()

    try:
        lowlevel.disable_ki_protection(unprotected)()
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)


async def to_end(wait: Callable[[], Awaitable[object]]) -> None:
    """Await something that must not be left, whatever cancels the caller; raise that afterwards.

    A shield of anyio's holds off its own cancellation, but not asyncio's `Task.cancel`.

    Args:
        wait: Called again after a cancellation; returns once what is awaited has come.
    """
    cancelled: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await wait()
            break
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            cancelled = None  # its traceback refers to this frame


# --- background tasks


class Task(Generic[R]):
    """A function that runs in the background, independent of its starter; see `spawn`.

    Attributes:
        result: What the function returned, None before.
        error: What it raised, None if it did not; the event loop's own cancellation among it.
    """

    def __init__(self, function: Callable[[], Awaitable[R]]) -> None:
        self._function = function
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self.result: R | None = None
        self.error: BaseException | None = None

    def start(self, name: str) -> None:
        """Start it, as `spawn` does."""
        loop = current_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            self._start_on_trio(name)
            return
        if loop.is_closed():
            raise _ending()
        # The loop's task factory is passed by: an eager one would run the function in here.
        running = asyncio.Task(self._run(), loop=loop, context=Context(), name=name)
        _running.add(running)
        running.add_done_callback(_running.discard)
        running.add_done_callback(self._end)  # cancelled before its first step, it never runs

    def _start_on_trio(self, name: str) -> None:
        import trio  # noqa: PLC0415  # only where it runs already

        try:
            trio.lowlevel.spawn_system_task(self._run, name=name, context=Context())
        except RuntimeError as exc:
            raise _ending() from exc

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to end; it may still be under way."""
        return self._scope.cancel_called

    def cancel(self) -> None:
        """Cancel it; it ends when what it awaits has been cleaned up. Without effect at its end."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Return when it has ended, however it ended. Cancelling this does not cancel the task."""
        await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope:
                self.result = await self._function()
        except BaseException as error:  # noqa: BLE001  # kept as the outcome
            self.error = error
            if isinstance(error, KeyboardInterrupt | SystemExit):
                _pass_on(error)
        finally:
            self._end()

    def _end(self, _task: object = None) -> None:
        self._ended.set()
        self.__dict__.pop("_function", None)  # what it refers to may be large


_running: set[asyncio.Task[None]] = set()
"""asyncio itself holds its tasks weakly."""


def spawn(function: Callable[[], Awaitable[R]], *, name: str) -> Task[R]:
    """Run an async function in the background of the current event loop.

    The task belongs to nobody: not to the caller's cancel scopes, task group or context
    variables. No error of the function escapes; it is kept in `Task.error`. The function never
    runs before this returns. When the event loop ends, the task is cancelled.

    Args:
        function: Takes no arguments.
        name: Of the task, for debuggers.

    Raises:
        ModelClosed: The event loop is ending.
    """
    task = Task(function)
    task.start(name)
    return task


def _ending() -> ModelClosed:
    return ModelClosed("the event loop is ending: nothing can be started on it any more")


def _pass_on(error: KeyboardInterrupt | SystemExit) -> None:
    """Let what is to end the program do so, from a background task.

    An asyncio task may raise it. In a trio system task nothing may escape; the signal, sent
    again, reaches trio's main task.
    """
    if isinstance(current_loop(), asyncio.AbstractEventLoop):
        raise error
    if isinstance(error, KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    else:
        _logger.error("a background task cannot exit the program under trio", exc_info=error)


# --- worker threads


async def run_in_thread(function: Callable[[], R], *, limiter: CapacityLimiter | None = None) -> R:
    """Run a function in a worker thread; cancelling releases the caller immediately.

    A function that has not begun then never does. One that has begun runs to its end, keeps its
    place in the limiter until then, and its result is dropped.

    Args:
        function: Takes no arguments.
        limiter: Bounds how many threads run at the same time; anyio's default one otherwise.
    """
    return await BlockingCall(function).run_releasing(limiter)


_no_limit: RunVar[CapacityLimiter] = RunVar("aioembed_no_limit")


def _unlimited() -> CapacityLimiter:
    limiter = _no_limit.get(None)
    if limiter is None:
        limiter = CapacityLimiter(math.inf)
        _no_limit.set(limiter)
    return limiter


class BlockingCall(Generic[R]):
    """A call that, once begun in a worker thread, is always waited for.

    `anyio.to_thread.run_sync` does so for anyio's own cancellation, but asyncio's `Task.cancel`
    and `wait_for` go through its shield. Here they too are held back until the thread is done,
    and what the call returned can still be read afterwards.

    Args:
        function: What to run; takes no arguments.

    Attributes:
        result: What it returned, None before that.
        error: What it raised, None if it did not.
    """

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._claim = threading.Lock()
        self._begun = False
        self._dropped = False
        self._finished = threading.Event()
        self._release: Callable[[], object] | None = None
        self.result: R | None = None
        self.error: BaseException | None = None

    async def run(self, limiter: CapacityLimiter | None = None) -> R:
        """Run the function, and return its result or raise what it raised.

        Args:
            limiter: Bounds how many threads run at the same time.
        """
        await self.wait(limiter)
        return self.outcome()

    async def wait(self, limiter: CapacityLimiter | None = None) -> None:
        """Run the function and return when it has ended, however it ended.

        Args:
            limiter: Bounds how many threads run at the same time.

        Raises:
            BaseException: The caller's cancellation, when the function has ended or was never
                begun. Never what the function raised: that is in `error`.
        """
        try:
            await to_thread.run_sync(self._work, limiter=limiter)
        except BaseException:
            await self._join()
            raise

    async def run_releasing(self, limiter: CapacityLimiter | None = None) -> R:
        """Like `run`, but a cancelled caller is released immediately, whatever the thread does.

        Args:
            limiter: As for `run`; a function that has begun keeps its place to its end.
        """
        limiter = limiter or to_thread.current_default_thread_limiter()
        await limiter.acquire_on_behalf_of(self)
        try:
            await to_thread.run_sync(self._work, abandon_on_cancel=True, limiter=_unlimited())
        finally:
            self._when_finished(partial(limiter.release_on_behalf_of, self))
        return self.outcome()

    def outcome(self) -> R:
        """Return the function's result or raise what it raised; the error is handed over."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # its traceback refers to this call: a cycle
        return self.result  # type: ignore[return-value]  # R may itself allow None

    def _work(self) -> None:
        with self._claim:
            if self._dropped:
                return
            self._begun = True
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  # kept for the caller
            self.error = error
        with self._claim:
            self._finished.set()
            release = self._release
        if release is not None:
            release()

    def _when_finished(self, release: Callable[[], object]) -> None:
        """Call `release` now, or on the event loop as soon as the thread has finished."""
        with self._claim:
            self._dropped = not self._begun
            if self._begun and not self._finished.is_set():
                self._release = partial(call_soon_on, current_loop(), release)
                return
        release()

    async def _join(self) -> None:
        """Wait for the thread, or see to it that the function is never begun."""
        with self._claim:
            self._dropped = not self._begun
        if self._begun and not self._finished.is_set():
            await to_end(lambda: to_thread.run_sync(self._finished.wait))
