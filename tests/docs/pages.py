"""What the pages for readers show: their Python, and their command lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "CommandLine", "Snippet", "command_lines", "snippets"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_SNIPPET = re.compile(
    r"^(?:<!-- (?P<kind>setup|not run:)(?P<note>.*?)-->\n)?```python\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_SHELL = re.compile(
    r"^(?:<!-- not run:(?P<note>.*?)-->\n)?```(?:sh|console)\n(?P<lines>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """One block of Python on a page.

    Attributes:
        setup: Python that the reader does not see and that runs first.
        reason: Why it is not run, None if it is.
        output: What the page says that it prints, None where it does not say.
    """

    page: Path
    line: int
    code: str
    setup: str = ""
    reason: str | None = None
    output: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class CommandLine:
    """One command on a page, with what continues it."""

    page: Path
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}: {self.text}"


def snippets() -> list[Snippet]:
    """Return every block of Python."""
    return [one for page in PAGES for one in _snippets(page)]


def command_lines() -> list[CommandLine]:
    """Return every command line, but for those of other programs that are marked so."""
    return [one for page in PAGES for one in _command_lines(page)]


def _snippets(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _SNIPPET.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        note = (match["note"] or "").strip()
        is_setup = match["kind"] == "setup"
        found.append(
            Snippet(
                page,
                line,
                match["code"],
                setup=note if is_setup else "",
                reason=None if is_setup or match["kind"] is None else note,
                output=match["output"],
            )
        )
    return found


def _command_lines(page: Path) -> list[CommandLine]:
    text = page.read_text(encoding="utf-8")
    blocks = [block for block in _SHELL.finditer(text) if block["note"] is None]
    lines = [
        line.removeprefix("$ ").strip()
        for block in blocks
        for line in block["lines"].replace("\\\n", " ").splitlines()
    ]
    return [CommandLine(page, re.sub(r" +", " ", line)) for line in lines if line]
