"""A widget that shows what a model is doing."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.widget import Widget

from aioembed import ModelState, Status
from aioembed.errors import AioembedError
from aioembed.handle import EmbeddingHandle

from .figures import describe_download, describe_work

__all__ = ["ModelStatus"]

_FRAME_SECONDS = 0.1
_LIKE_READY = {Status.GENERATING: Status.READY}
_PERCENT_WIDTH = 6
_DOT = "●"


class ModelStatus(Widget, can_focus=True):
    """Shows a model: state, download, error, queue and throughput. It fits 40 columns.

    The widget has a CSS class for each state, such as `-ready` or `-failed`. It observes the
    model and holds it not; see `ModelMixin`.

    Args:
        model: An image or text handle.
        name: Of the widget.
        id: Of the widget.
        classes: CSS classes of the widget.
        disabled: Whether it takes no keys.
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
    | `model-status--bar` | What of the download is done. |
    | `model-status--track` | What of the download is left. |
    | `model-status--figures` | Bytes, rate and time, or queue and throughput. |
    | `model-status--error` | Why the load failed. |
    | `model-status--key` | The key that tries again. |
    """

    DEFAULT_CSS: ClassVar[str] = """
    ModelStatus {
        height: auto;
        min-height: 3;
        padding: 0 1;
        border-left: wide $primary;

        &:focus { background: $boost; }
        &.-ready { border-left: wide $success; }
        &.-generating { border-left: wide $accent; }
        &.-failed { border-left: wide $error; }
        &.-idle, &.-closed { border-left: wide $panel; }

        & > .model-status--state { text-style: bold; color: $primary; }
        &.-ready > .model-status--state { color: $success; }
        &.-generating > .model-status--state { color: $accent; }
        &.-failed > .model-status--state { color: $error; }
        & > .model-status--name { color: $text-muted; }
        & > .model-status--bar { color: $primary; }
        & > .model-status--track { color: $panel; }
        & > .model-status--figures { color: $text-muted; }
        & > .model-status--error { color: $text-error; }
        & > .model-status--key { text-style: bold; color: $text; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "retry", "Try again"),
        Binding("p", "pause", "Pause/resume"),
    ]
    """
    | Key | Description |
    | :- | :- |
    | r | Load again after a failure. |
    | p | Pause or resume the download. |
    """

    state: reactive[ModelState] = reactive(ModelState(), repaint=False)
    """What the model is doing."""

    def __init__(
        self,
        model: EmbeddingHandle[Any],
        *,
        name: str | None = None,
        id: str | None = None,  # noqa: A002  # Textual's own name
        classes: str | None = None,
        disabled: bool = False,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes, disabled=disabled)
        self._model = model
        self._shown_figures = ""
        self._done = 0

    def on_mount(self) -> None:
        """Begin to observe."""
        self.state = self._model.state
        self._unsubscribe = self._model.subscribe(self._follow)
        self.set_interval(_FRAME_SECONDS, self._catch_up)

    def on_unmount(self) -> None:
        """Cease to observe."""
        self._unsubscribe()

    def watch_state(self, old: ModelState, new: ModelState) -> None:
        """Show another state."""
        if old.status is not new.status or not self.has_class(f"-{new.status}"):
            self.remove_class(*(f"-{status}" for status in Status), update=False)
            self.add_class(f"-{new.status}")
        is_other = not _look_alike(old, new)
        if is_other:
            self.refresh_bindings()
        self.refresh(layout=is_other and not self._fits())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer a key only where it does something."""
        del parameters
        if action == "retry":
            return self.state.status in {Status.FAILED, Status.IDLE}
        if action == "pause":
            return self.state.status is Status.DOWNLOADING
        return True

    def action_retry(self) -> None:
        """Load again."""
        self.run_worker(self._load(), group="load", exclusive=True)

    def action_pause(self) -> None:
        """Pause the download, or resume it."""
        if self.state.is_paused:
            self._model.resume_download()
        else:
            self._model.pause_download()

    def render(self) -> Text:
        """Return up to three lines, more for a long error."""
        state = self.state
        width = max(1, self.content_size.width or self.size.width)
        lines = [self._heading(state, width)]
        if state.status is Status.DOWNLOADING:
            lines += [self._bar(state, width), self._figures(describe_download(state))]
        elif state.is_ready:
            lines.append(self._figures(describe_work(self._model.state, self._model.statistics())))
        elif state.error is not None and state.status is Status.FAILED:
            lines.append(Text(str(state.error), self._style("error")))
            lines.append(
                Text.assemble(("r", self._style("key")), (" tries again", self._style("figures")))
            )
        return Text("\n").join(lines)

    def _fits(self) -> bool:
        """Whether as many lines are wanted as there are, which spares the screen a new layout."""
        width, height = self.content_size
        least = self.styles.min_height
        wanted = len(self.render().wrap(self.app.console, max(1, width)))
        return height == max(wanted, least.cells or 0 if least else 0)

    def _heading(self, state: ModelState, width: int) -> Text:
        status = f"{_DOT} {state.status} "
        name = Text(self._model.spec.name)
        name.truncate(max(0, width - len(status)), overflow="ellipsis")
        return Text.assemble((status, self._style("state")), (name.plain, self._style("name")))

    def _bar(self, state: ModelState, width: int) -> Text:
        room = max(1, width - _PERCENT_WIDTH)
        done = round(room * state.download_progress)
        return Text.assemble(
            ("━" * done, self._style("bar")),
            ("━" * (room - done), self._style("track")),
            (f"{state.download_progress:>6.0%}", self._style("state")),
        )

    def _figures(self, text: str) -> Text:
        return Text(text, self._style("figures"))

    def _style(self, part: str) -> Style:
        return self.get_component_rich_style(f"model-status--{part}", partial=True)

    def _follow(self) -> None:
        """Show at once what looks different; what only counts on waits for the next frame."""
        if not _look_alike(self.state, self._model.state):
            self.state = self._model.state

    def _catch_up(self) -> None:
        state, statistics = self._model.state, self._model.statistics()
        done = statistics.succeeded + statistics.failed
        if self._done == done or not _is_pause(self.state, state):  # else it would flicker
            self.state = state
        self._done = done
        figures = describe_work(state, statistics)
        if state.is_ready and figures != self._shown_figures:
            self._shown_figures = figures
            self.refresh()

    async def _load(self) -> None:
        try:
            await self._model.load()
        except AioembedError:
            self.log("the load failed again; the state says why")


def _is_pause(one: ModelState, other: ModelState) -> bool:
    return one.status is Status.GENERATING and other.status is Status.READY


def _look_alike(one: ModelState, other: ModelState) -> bool:
    """Whether two states take the same lines and keys; a busy model changes many times a frame."""
    return (
        _LIKE_READY.get(one.status, one.status) is _LIKE_READY.get(other.status, other.status)
        and one.error is other.error
        and one.is_paused is other.is_paused
    )
