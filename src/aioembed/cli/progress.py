"""How far a command is, on stderr: a line that changes on a terminal, else only downloads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner

from aioembed import ModelState, Status
from aioembed.handle import EmbeddingHandle

from .common import warn

__all__ = ["Pace", "ProgressLine", "describe_download", "describe_seconds"]

_MEGABYTE = 1_000_000
_LEAST_SECONDS = 0.5
_LEAST_COUNT = 3


class Pace:
    """How fast items are done, and how long the others will take.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None

    def describe(self, done: int, total: int, worked: int) -> str:
        """Return how far it is, such as `1,200 of 20,000 (6 %), 85/s, 3 min 41 s left`.

        Args:
            done: Items that are dealt with.
            total: All of them.
            worked: Those of `done` that took work; the others were known already.
        """
        if self._began is None:
            self._began = self._clock()
        share = f" ({int(100 * done / total)} %)" if total else ""
        parts = [f"{done:,} of {total:,}{share}"]
        seconds = self._clock() - self._began
        if worked >= _LEAST_COUNT and seconds >= _LEAST_SECONDS:
            rate = worked / seconds
            parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s")  # noqa: PLR2004
            if done < total:
                parts.append(f"{describe_seconds((total - done) / rate)} left")
        return ", ".join(parts)


class ProgressLine:
    """Follows a model, and counts what is done, while it is used as a context manager.

    Args:
        model: The handle to follow.
        total: How many items are to be embedded.
        console: Where to show it; by default stderr.
    """

    def __init__(
        self, model: EmbeddingHandle[Any], total: int = 0, console: Console | None = None
    ) -> None:
        self._model = model
        self._total = total
        self._done = 0
        self._pace = Pace()
        self._sentence = ""
        self._console = console or Console(stderr=True)
        self._spinner = Spinner("", console=self._console) if self._console.is_terminal else None
        self._download_announced = False

    def __enter__(self) -> Self:
        self._unsubscribe = self._model.subscribe(self._show)
        if self._spinner is not None:
            self._spinner.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._unsubscribe()
        if self._spinner is not None:
            self._spinner.stop()

    def advance(self) -> None:
        """Count one more item as done, embedded or not."""
        self._done += 1
        self.show(f"embedding: {self._pace.describe(self._done, self._total, self._done)}")

    def show(self, sentence: str) -> None:
        """Show a sentence in place of the model's states."""
        self._sentence = sentence
        self._show()

    def _show(self) -> None:
        state = self._model.state
        if self._spinner is not None:
            self._spinner.update(escape(self._describe(state)))
        elif state.status is Status.DOWNLOADING and not self._download_announced:
            self._download_announced = True
            warn(f"downloading {self._model.spec.name}")

    def _describe(self, state: ModelState) -> str:
        if state.status is Status.DOWNLOADING:
            return f"downloading {self._model.spec.name}: {describe_download(state)}"
        return self._sentence or f"{state.status} {self._model.spec.name}"


def describe_seconds(seconds: float) -> str:
    """Return a duration in its two largest units, such as `3 min 41 s`."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_download(state: ModelState) -> str:
    """Return how far a download is, such as `42 % of 352 MB, 12.5 MB/s, 16 s left`."""
    if state.total_bytes is None:
        parts = [f"{state.downloaded_bytes / _MEGABYTE:.0f} MB"]
    else:
        parts = [f"{state.download_progress:.0%} of {state.total_bytes / _MEGABYTE:.0f} MB"]
    if state.is_paused:
        return f"{parts[0]}, paused"
    if state.download_rate > 0:
        parts.append(f"{state.download_rate / _MEGABYTE:.1f} MB/s")
    if state.download_eta is not None:
        parts.append(f"{describe_seconds(state.download_eta)} left")
    return ", ".join(parts)
