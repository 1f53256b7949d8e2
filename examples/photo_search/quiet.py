"""Textual's screen, containers and input line, painting no more of the screen than changed."""

from __future__ import annotations

import asyncio
from typing import Any

from textual.containers import Vertical
from textual.geometry import Size
from textual.reactive import Reactive, reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input

PAUSE = 0.002
FOCUS_SECONDS = 0.005
BLUR_SECONDS = 0.02


class QuietScreen(Screen[Any]):
    """A screen that is not painted anew when another widget gets the focus; that one is.

    Where several widgets changed, it paints one after the other, that with the focus first, and
    lets keys in between. Textual, whose own method this overrides, paints all of them at once.
    """

    BLANK = True
    focused: Reactive[Widget | None] = reactive(None, repaint=False)

    def _on_timer_update(self) -> None:
        changed, is_whole = self._dirty_widgets, self._layout_required or self._repaint_required
        if len(changed) < 2 or is_whole or not self.is_current:
            super()._on_timer_update()
            return
        first = self.focused if self.focused in changed else next(iter(changed))
        self._dirty_widgets = {first}
        super()._on_timer_update()
        self._dirty_widgets |= changed - {first}
        self.call_later(self._paint_others)

    async def _paint_others(self) -> None:
        await asyncio.sleep(PAUSE)
        self._on_timer_update()


class Pane(Vertical):
    """A container that has only its children to show, so that its own lines are all alike.

    Textual paints all widgets of a container when one of them changes: those that change apart
    are better in panes of their own.
    """

    BLANK = True


class QuietInput(Input):
    """An input line whose length is nothing the screen's layout has to know with each letter.

    It looks different a moment after the widget that the focus comes from or goes to, for both
    at once would take too long.
    """

    virtual_size: Reactive[Size] = reactive(Size(0, 0), repaint=False)

    def watch_has_focus(self, has_focus: bool) -> None:
        self.set_timer(FOCUS_SECONDS if has_focus else BLUR_SECONDS, self.update_node_styles)
