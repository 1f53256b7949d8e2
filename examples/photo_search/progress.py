"""How far the indexing is, in two lines."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from aioembed.index import SyncReport


class Progress(Widget):
    """A bar, and below it the figures; drawn at once, where a `ProgressBar` is two widgets more."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Progress {
        height: 2;
        color: $text-muted;
        & > .progress--bar { color: $success; }
        & > .progress--track { color: $panel; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"progress--bar", "progress--track"}

    report: reactive[SyncReport] = reactive(SyncReport())

    def render(self) -> Text:
        report, width = self.report, self.size.width
        is_whole = not report.is_scanning and report.done == report.total
        filled = width if is_whole else width * report.done // max(1, report.total)
        bar, track = (
            self.get_component_rich_style(f"progress--{part}", partial=True)
            for part in ("bar", "track")
        )
        failed = f", {report.failed} failed" if report.failed else ""
        words = f"\n{report.done:,} of {report.total:,} pictures{failed}"
        return Text.assemble(("━" * filled, bar), ("━" * (width - filled), track), words)
