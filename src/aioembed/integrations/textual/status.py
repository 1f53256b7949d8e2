"""A widget that shows what a model is doing, and its figures in words."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from aioembed import ModelState, Statistics, Status
from aioembed.errors import AioembedError, InvalidConfig
from aioembed.handle import EmbeddingHandle

__all__ = ["ModelStatus", "describe_download", "describe_work", "format_bytes", "format_eta"]

_FRAME_SECONDS = 0.1
_PERCENT_WIDTH = 6
_WIDTH = 37  # of 40 columns, within the widget's border and padding
_MINUTE = 60
_HOUR = 60 * _MINUTE


class ModelStatus(Widget, can_focus=True):
    """Shows a model: state, download, error, queue and throughput, in three lines of 40 columns.

    The widget has a CSS class for each state, such as `-ready` or `-failed`. It observes the
    model and does not open or close it; see `ModelMixin`.

    Args:
        model: An image or text handle.
        name: The name of the widget.
        id: The ID of the widget in the DOM.
        classes: The CSS classes of the widget.
        disabled: Whether the widget is disabled.

    Raises:
        InvalidConfig: `model` is not a handle.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "model-status--state",
        "model-status--name",
        "model-status--bar",
        "model-status--track",
        "model-status--figures",
        "model-status--error",
        "model-status--key",
    }
    """
    | Class | Description |
    | :- | :- |
    | `model-status--state` | The state's name. |
    | `model-status--name` | The model's name. |
    | `model-status--bar` | The part of the download that is done. |
    | `model-status--track` | The part of the download that is left. |
    | `model-status--figures` | Bytes, rate and time, or queue and throughput. |
    | `model-status--error` | Why the load failed. |
    | `model-status--key` | The key that loads again. |
    """

    DEFAULT_CSS: ClassVar[str] = """
    ModelStatus {
        height: auto;
        min-height: 3;
        padding: 0 1;
        color: $text;
        background: $surface;
        border-left: wide $primary;

        &:focus { background-tint: $foreground 5%; }
        &.-ready { border-left: wide $success; }
        &.-generating { border-left: wide $accent; }
        &.-failed { border-left: wide $error; }
        &.-idle, &.-closed { border-left: wide $foreground-muted; }

        & > .model-status--state { text-style: bold; }
        & > .model-status--bar { color: $text-primary; }
        & > .model-status--track { color: $foreground 40%; }
        & > .model-status--key { text-style: bold; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "retry", "Load"),
        Binding("p", "pause", "Pause/resume"),
    ]
    """
    | Key | Description |
    | :- | :- |
    | r | Load, or load again after a failure. |
    | p | Pause or resume the download. |
    """

    state: reactive[ModelState] = reactive(ModelState(), repaint=False)
    """The state that is shown."""

    def __init__(
        self,
        model: EmbeddingHandle[Any],
        *,
        name: str | None = None,
        id: str | None = None,  # noqa: A002  # Textual's own name
        classes: str | None = None,
        disabled: bool = False,
    ) -> None:
        if not hasattr(model, "subscribe"):
            raise InvalidConfig(
                "ModelStatus shows a handle, such as ImageEmbeddings(), "
                f"not an object of type {type(model).__name__}"
            )
        super().__init__(name=name, id=id, classes=classes, disabled=disabled)
        self._model = model
        self._statistics = model.statistics()

    def on_mount(self) -> None:
        """Start to observe."""
        self._unsubscribe = self._model.subscribe(self._follow)
        self.state = self._model.state
        self.set_interval(_FRAME_SECONDS, self._draw_frame)

    def on_unmount(self) -> None:
        """Stop observing."""
        self._unsubscribe()

    def watch_state(self, old: ModelState, new: ModelState) -> None:
        """Show another state."""
        if not self.has_class(f"-{new.status}"):
            self.remove_class(*(f"-{status}" for status in Status))
            self.add_class(f"-{new.status}")
        is_other = old.status is not new.status or old.error is not new.error
        if is_other:
            self.refresh_bindings()
        self.refresh(layout=is_other)

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Show the key that loads again only while it works: the widget has the focus."""
        super().watch_has_focus(_has_focus)
        self.refresh(layout=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer a key only where it has an effect."""
        del parameters
        if action == "retry":
            return self.state.status in {Status.FAILED, Status.IDLE}
        if action == "pause":
            return self.state.status is Status.DOWNLOADING
        return True

    def action_retry(self) -> None:
        """Load, or load again after a failure."""
        self.run_worker(self._load(), group="load", exclusive=True)

    def action_pause(self) -> None:
        """Pause the download, or resume it."""
        if self.state.is_paused:
            self._model.resume_download()
        else:
            self._model.pause_download()

    def render(self) -> Content:
        """Return up to three lines, more for a long error."""
        state = self.state
        width = max(1, self.content_size.width or _WIDTH)
        doing = "asleep" if state.is_asleep else "waking" if state.is_waking else state.status
        heading = f"● {doing} "
        name = Content(self._model.spec.name).truncate(max(1, width - len(heading)), ellipsis=True)
        lines = [self._styled(("state", heading), ("name", name.plain))]
        if state.status is Status.DOWNLOADING:
            room = max(1, width - _PERCENT_WIDTH)
            done = round(room * state.download_progress)
            percent = f"{state.download_progress:>{_PERCENT_WIDTH}.0%}"
            bar = ("bar", "━" * done), ("track", "━" * (room - done)), ("state", percent)
            lines += [
                self._styled(*bar),
                self._styled(("figures", describe_download(state, width))),
            ]
        elif state.is_ready:
            figures = describe_work(self._model.state, self._statistics, width)
            lines.append(self._styled(("figures", figures)))
        elif state.status is Status.FAILED:
            lines.append(self._styled(("error", str(state.error))))
            if self.has_focus:
                lines.append(self._styled(("key", "r"), ("figures", " tries again")))
        return Content("\n").join(lines)

    def _styled(self, *parts: tuple[str, str]) -> Content:
        return Content.assemble(
            *(
                (text, self.get_visual_style(f"model-status--{part}", partial=True))
                for part, text in parts
                if text
            )
        )

    def _follow(self) -> None:
        """Show another status immediately; figures wait for the next frame."""
        state = self._model.state
        if not (self.state.is_ready and state.is_ready) and (
            state.status is not self.state.status or state.error is not self.state.error
        ):
            self.state = state

    def _draw_frame(self) -> None:
        """Show what has changed since the last frame.

        Between two inferences a busy model is ready for a moment: that is not shown.
        """
        state, before, now = self._model.state, self._statistics, self._model.statistics()
        self._statistics = now
        has_worked = (now.succeeded, now.failed) != (before.succeeded, before.failed)
        if not (has_worked and self.state.status is Status.GENERATING and state.is_ready):
            self.state = state
        if now != before:
            self.refresh()

    async def _load(self) -> None:
        try:
            await self._model.load()
        except AioembedError as error:
            self.log(error=error)


def format_bytes(count: float) -> str:
    """Return a number of bytes, such as `61.3 kB` or `352 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    unit = 0
    while count >= 1000 and unit < len(units) - 1:  # noqa: PLR2004
        count /= 1000
        unit += 1
    return f"{count:.1f} {units[unit]}" if unit and count < 100 else f"{count:.0f} {units[unit]}"  # noqa: PLR2004


def format_eta(seconds: float) -> str:
    """Return a duration, such as `8 s`, `2:05 min` or `1:30 h`."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02} min"
    return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02} h"


def describe_download(state: ModelState, width: int = _WIDTH) -> str:
    """Return how far a download is, such as `141 MB of 352 MB · 12.5 MB/s · 17 s`.

    Args:
        state: Of the model.
        width: Most columns; what does not fit is left out, the least important first.
    """
    parts = [format_bytes(state.downloaded_bytes)]
    if state.total_bytes is not None:
        parts[0] += f" of {format_bytes(state.total_bytes)}"
    if state.is_paused:
        parts.append("paused")
    elif state.download_rate > 0:
        parts.append(f"{format_bytes(state.download_rate)}/s")
        if state.download_eta is not None:
            parts.append(f"{format_eta(state.download_eta)} left")
    return _joined(parts, width)


def describe_work(state: ModelState, statistics: Statistics, width: int = _WIDTH) -> str:
    """Return what a loaded model does, such as `3 queued · 1,204 done · 41.5/s`.

    Args:
        state: Of the model.
        statistics: Of the model.
        width: Most columns; what does not fit is left out, the least important first.
    """
    parts = [f"{state.queue_depth:,} queued", f"{statistics.succeeded:,} done"]
    if statistics.failed:
        parts.append(f"{statistics.failed:,} failed")
    parts.append(f"{statistics.throughput:.1f}/s")
    return _joined(parts, width)


def _joined(parts: list[str], width: int) -> str:
    """Join as many parts as fit, at least the first."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + len(part) + 3 <= width:
            text += f" · {part}"
    return text
