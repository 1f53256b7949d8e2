"""What a model is doing, on stderr: a line that changes on a terminal, else only downloads."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner

from aioembed import ImageEmbeddings, ModelState, Status

from .common import warn

__all__ = ["ProgressLine", "describe_download"]

_MEGABYTE = 1_000_000


class ProgressLine:
    """Follows a model while it is used as a context manager.

    Args:
        model: The handle to follow.
        total: How many images are to be embedded.
        console: Where to show it; stderr where not given.
    """

    def __init__(self, model: ImageEmbeddings, total: int, console: Console | None = None) -> None:
        self._model = model
        self._total = total
        self._done = 0
        self._console = console or Console(stderr=True)
        self._spinner = Spinner("", console=self._console) if self._console.is_terminal else None
        self._download_announced = False

    def __enter__(self) -> Self:
        self._unsubscribe = self._model.subscribe(self._show)
        if self._spinner is not None:
            self._spinner.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unsubscribe()
        if self._spinner is not None:
            self._spinner.stop()

    def advance(self) -> None:
        """Count one more image as done, embedded or not."""
        self._done += 1
        self._show()

    def _show(self) -> None:
        state = self._model.state
        if self._spinner is not None:
            self._spinner.update(escape(self._sentence(state)))
        elif state.status is Status.DOWNLOADING and not self._download_announced:
            self._download_announced = True
            warn(f"downloading {self._model.spec.name}")

    def _sentence(self, state: ModelState) -> str:
        if state.status is Status.DOWNLOADING:
            return f"downloading {self._model.spec.name}: {describe_download(state)}"
        if state.is_ready:
            return f"embedding: {self._done} of {self._total} done"
        return f"{state.status} {self._model.spec.name}"


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
        parts.append(f"{state.download_eta:.0f} s left")
    return ", ".join(parts)
