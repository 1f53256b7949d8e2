"""Textual's screen, containers and input line, painting no more of the screen than changed."""

from __future__ import annotations

from typing import Any

from textual.containers import Vertical
from textual.geometry import Size
from textual.reactive import Reactive, reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input


class QuietScreen(Screen[Any]):
    """A screen that is not painted anew when another widget gets the focus; that one is."""

    BLANK = True
    focused: Reactive[Widget | None] = reactive(None, repaint=False)


class Pane(Vertical):
    """A container that has only its children to show, so that its own lines are all alike.

    Textual paints all widgets of a container when one of them changes: those that change apart
    are better in panes of their own.
    """

    BLANK = True


class QuietInput(Input):
    """An input line whose length is nothing the screen's layout has to know with each letter."""

    virtual_size: Reactive[Size] = reactive(Size(0, 0), repaint=False)
