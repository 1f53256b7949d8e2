"""The list of results: lines that were made before, so that scrolling only copies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rendering import ROWS
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip


class Results(ScrollView, can_focus=True):
    """Results of `ROWS` lines each; one is marked, and Enter chooses it."""

    DEFAULT_CSS = """
    Results {
        overflow-x: hidden;
        & > .results--mark { color: $accent; }
        &:focus > .results--mark { color: $primary; text-style: bold; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"results--mark"}
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

    class Chosen(Message):
        """A result was chosen."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  # Textual's own name
        super().__init__(id=id)
        self.lines: Sequence[Strip] = ()

    @property
    def count(self) -> int:
        return len(self.lines) // ROWS

    def show(self, lines: Sequence[Strip]) -> None:
        """Show results, `ROWS` lines each, the first one marked."""
        behind = Style(bgcolor=self.rich_style.bgcolor)
        self.lines = [line.apply_style(behind) for line in lines]
        self.virtual_size = Size(self.scrollable_content_region.width, len(lines))
        self.marked = 0
        self.scroll_to(0, 0, animate=False)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, number = self.size.width, y + self.scroll_offset.y
        if number >= len(self.lines):
            return Strip.blank(width, self.rich_style)
        mark = "▌ " if number // ROWS == self.marked else "  "
        style = self.get_component_rich_style("results--mark")
        line = Strip.join([Strip([Segment(mark, style)], 2), self.lines[number]])
        return line.crop_extend(0, width, self.rich_style)

    def watch_marked(self, old: int, new: int) -> None:
        for number in (old, new):
            self.refresh_lines(number * ROWS, ROWS)
        region = Region(0, new * ROWS, self.scrollable_content_region.width, ROWS)
        self.scroll_to_region(region, animate=False)

    def validate_marked(self, number: int) -> int:
        return max(0, min(number, self.count - 1))

    def action_move(self, by: int) -> None:
        self.marked += by

    def action_move_page(self, by: int) -> None:
        self.marked += by * max(1, self.scrollable_content_region.height // ROWS)

    def action_choose(self) -> None:
        if self.lines:
            self.post_message(self.Chosen(self.marked))
