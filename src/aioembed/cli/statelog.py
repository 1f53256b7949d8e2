"""A model's states on stderr, each as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from aioembed import ImageEmbeddings, Status

__all__ = ["StateLog"]


class StateLog:
    """Prints a model's state now, and then every change of its status.

    Args:
        model: The handle to follow until it is closed.
        clock: Returns seconds.

    Attributes:
        subject: What is being embedded, printed behind the states of that.
    """

    def __init__(
        self, model: ImageEmbeddings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.subject = ""
        self._model = model
        self._clock = clock
        self._began = clock()
        self._status = model.state.status
        self._generating_since = self._began
        self._changes: int | None = None
        model.subscribe(self._changed)
        self._print(self._status)

    @contextmanager
    def together(self, subject: str) -> Iterator[None]:
        """Count the changes in the body instead of printing them, then print one line."""
        began = self._clock()
        self._changes = 0
        yield
        seconds, changes, self._changes = self._clock() - began, self._changes, None
        self._print(f"{subject}: {changes} changes of state in {seconds * 1000:.0f} ms")

    def _changed(self) -> None:
        before, self._status = self._status, self._model.state.status
        if self._status is before:
            return
        if self._changes is not None:
            self._changes += 1
        elif self._status is Status.GENERATING:
            self._print(f"{self._status} -> ", end=False)
            self._generating_since = self._clock()
        elif before is Status.GENERATING:
            milliseconds = (self._clock() - self._generating_since) * 1000
            typer.echo(f"{self._status} after {milliseconds:4.1f} ms  {self.subject}", err=True)
        else:
            self._print(self._status)

    def _print(self, what: str, *, end: bool = True) -> None:
        milliseconds = (self._clock() - self._began) * 1000
        typer.echo(f"{milliseconds:7.1f} ms  {what}", err=True, nl=end)
