"""The keys that do something now, in one line."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.screen import Screen
from textual.widget import Widget


class Keys(Widget):
    """Like Textual's `Footer`, which makes a widget of each key, and all anew with each focus."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Keys {
        height: 1;
        background: $footer-background;
        & > .keys--key { color: $footer-key-foreground; text-style: bold; }
        & > .keys--description { color: $footer-description-foreground; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--description"}

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, str, str]] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self.update)

    def update(self, screen: Screen[object]) -> None:
        shown = [
            (binding.key, self.app.get_key_display(binding), binding.description)
            for _, binding, enabled, _ in screen.active_bindings.values()
            if enabled and (binding.show or binding.key == self.app.COMMAND_PALETTE_BINDING)
        ]
        if shown != self.shown:
            self.shown = shown
            self.refresh()

    def render(self) -> Text:
        key, description = (
            self.get_component_rich_style(f"keys--{part}", partial=True)
            for part in ("key", "description")
        )
        parts = [
            Text.assemble((f" {display} ", key), (f"{words} ", description))
            for _, display, words in self.shown
        ]
        while parts and sum(part.cell_len for part in parts) > self.size.width:
            parts.pop()
        return Text.assemble(*parts, no_wrap=True)

    def on_click(self, event: events.Click) -> None:
        end = 0
        for key, display, words in self.shown:
            end += len(f" {display} {words} ")
            if event.x < end:
                self.app.simulate_key(key)
                return
