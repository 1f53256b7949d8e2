"""The list of results: lines that were made before, so that scrolling only copies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rendering import Canvas
from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget
from thumbnailer import ROWS

MARK_WIDTH, BAR_WIDTH = 2, 1
WHEEL_LINES = 3

Look = tuple[int, str]


class Results(Widget, can_focus=True):
    """Results of `ROWS` lines each; one is marked, and Enter chooses it.

    It is no `ScrollView`, as each step of one has the whole screen arranged anew, and hands its
    lines over as they are, so that Textual keeps what it wrote to the terminal for each.
    """

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Results {
        & > .results--mark { color: $accent; }
        & > .results--focused { color: $primary; text-style: bold; }
        & > .results--track { background: $scrollbar-background; }
        & > .results--thumb { background: $scrollbar; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "results--mark",
        "results--focused",
        "results--track",
        "results--thumb",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "move_page(-1)", show=False),
        Binding("pagedown", "move_page(1)", show=False),
        Binding("home", "move(-1000)", show=False),
        Binding("end", "move(1000)", show=False),
        Binding("enter", "choose", "More like it"),
    ]

    marked: reactive[int] = reactive(0, repaint=False)
    top: reactive[int] = reactive(0)

    class Chosen(Message):
        """A result was chosen."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  # Textual's own name
        super().__init__(id=id)
        self.lines: Sequence[Strip] = ()
        self.pieces: dict[Look, dict[str, Strip]] = {}
        self.joined: dict[tuple[Look, int, str, str], Strip] = {}

    @property
    def count(self) -> int:
        return len(self.lines) // ROWS

    @property
    def canvas(self) -> Canvas:
        """What lines are to be drawn for."""
        return Canvas(
            max(1, self.size.width - MARK_WIDTH - BAR_WIDTH),
            self.rich_style.background_style,
            self.get_line_filters(),
            self.background_colors[1],
            self.app.console,
        )

    def show(self, lines: Sequence[Strip]) -> None:
        """Show results, `ROWS` lines each, drawn for the canvas, the first one marked."""
        self.lines, self.joined = lines, {}
        self.marked = self.top = 0
        if lines and lines[0].cell_length != self.canvas.width:  # it was resized meanwhile
            self.fit()
        self.refresh()

    def render_lines(self, crop: Region) -> list[Strip]:
        width, height = self.size
        look = (width, self.app.theme)
        if look not in self.pieces:
            self.pieces[look] = self.draw_pieces()
        lines = [self.line(y, height, look) for y in crop.line_range]
        if crop.column_span == (0, width):
            return lines
        return [line.crop(*crop.column_span) for line in lines]

    def line(self, y: int, height: int, look: Look) -> Strip:
        number, pieces = y + self.top, self.pieces[look]
        if number >= len(self.lines):
            return pieces["blank"]
        mark = "unmarked"
        if number // ROWS == self.marked:
            mark = "focused" if self.has_focus else "mark"
        bar = self.bar(y, height)
        found = self.joined.get((look, number, mark, bar))
        if found is None:
            found = Strip.join([pieces[mark], self.lines[number], pieces[bar]])
            self.joined[look, number, mark, bar] = found
        return found

    def bar(self, y: int, height: int) -> str:
        total = len(self.lines)
        if total <= height:
            return "behind"
        is_thumb = self.top * height // total <= y <= (self.top + height) * height // total
        return "thumb" if is_thumb else "track"

    def draw_pieces(self) -> dict[str, Strip]:
        canvas, behind = self.canvas, self.rich_style.background_style
        styles = {
            name: behind + self.get_component_rich_style(f"results--{name}", partial=True)
            for name in ("mark", "focused", "track", "thumb")
        }
        pieces = {
            "blank": Strip.blank(self.size.width, behind),
            "behind": Strip.blank(BAR_WIDTH, behind),
            "track": Strip.blank(BAR_WIDTH, styles["track"]),
            "thumb": Strip.blank(BAR_WIDTH, styles["thumb"]),
            "unmarked": Strip.blank(MARK_WIDTH, behind),
            "mark": Strip([Segment("▌ ", styles["mark"])], MARK_WIDTH),
            "focused": Strip([Segment("▌ ", styles["focused"])], MARK_WIDTH),
        }
        return {name: canvas.finish(piece) for name, piece in pieces.items()}

    def on_resize(self) -> None:
        self.fit()
        self.show_marked()

    def fit(self) -> None:
        canvas = self.canvas
        self.lines = [canvas.finish(canvas.fit(line)) for line in self.lines]
        self.joined = {}

    def watch_marked(self, old: int, new: int) -> None:
        self.paint(old)
        self.paint(new)
        self.show_marked()

    def paint(self, number: int) -> None:
        self.refresh(Region(0, number * ROWS - self.top, self.size.width, ROWS))

    def on_focus(self, event: events.Focus) -> None:
        event.prevent_default()  # Textual's own paints all lines
        self.has_focus = True

    def on_blur(self, event: events.Blur) -> None:
        event.prevent_default()
        self.has_focus = False

    def watch_has_focus(self, _has_focus: bool) -> None:
        self.paint(self.marked)

    def validate_marked(self, number: int) -> int:
        return max(0, min(number, self.count - 1))

    def validate_top(self, top: int) -> int:
        return max(0, min(top, len(self.lines) - self.size.height))

    def show_marked(self) -> None:
        start = self.marked * ROWS
        self.top = min(start, max(self.top, start + ROWS - self.size.height))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.top += WHEEL_LINES

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.top -= WHEEL_LINES

    def on_click(self, event: events.Click) -> None:
        self.marked = (event.y + self.top) // ROWS

    def action_move(self, by: int) -> None:
        self.marked += by

    def action_move_page(self, by: int) -> None:
        self.marked += by * max(1, self.size.height // ROWS)

    def action_choose(self) -> None:
        if self.lines:
            self.post_message(self.Chosen(self.marked))
