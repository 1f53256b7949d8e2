"""Tasks that live as long as an `async with` block, without touching the block's own errors."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup

__all__ = ["Nursery"]


class Nursery:
    """A task group that is opened and closed by another object's `async with`.

    At the end its tasks are cancelled. The body's errors pass as they are, not in a group.
    """

    def __init__(self) -> None:
        self._tasks: TaskGroup | None = None

    @property
    def is_open(self) -> bool:
        """Whether tasks can be started."""
        return self._tasks is not None

    async def open(self) -> None:
        """Allow tasks, from the beginning of the block."""
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a task; the nursery is open."""
        assert self._tasks is not None  # noqa: S101  # callers ask `is_open`
        self._tasks.start_soon(function)

    async def close(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Cancel the tasks and wait for them, at the end of the block.

        Returns:
            Whether the body's exception was the task group's own cancellation.
        """
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return None
        tasks.cancel_scope.cancel()
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            return await tasks.__aexit__(exc_type, exc, traceback)
        await tasks.__aexit__(None, None, None)
        return None
