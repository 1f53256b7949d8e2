"""Draws the life of a model from its table of legal moves, as an SVG.

    python docs/site/states_diagram.py      writes docs/assets/states.svg

Where a state may follow every other one, a single arrow leads to it from the frame around them.
Two moves back and forth are one line with two heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aioembed.state import LEGAL_MOVES, Status

__all__ = ["CENTRES", "draw", "lines"]

FILE = Path(__file__).resolve().parents[1] / "assets" / "states.svg"

WIDTH, HEIGHT = 400, 560
BOX = (124, 40)
FRAME = (12, 12, 376, 462)
CENTRES = {
    Status.IDLE: (250, 50),
    Status.DOWNLOADING: (250, 145),
    Status.LOADING: (250, 240),
    Status.READY: (250, 335),
    Status.GENERATING: (250, 430),
    Status.FAILED: (86, 145),
    Status.CLOSED: (250, 526),
}
_STYLE = (
    "<style>.states{color:#1f2328;background:#fff}"
    "@media(prefers-color-scheme:dark){.states{color:#e6edf3;background:#0d1117}}</style>"
)
_HEAD = (
    '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="currentColor"/></marker>'
)


class Line(NamedTuple):
    """A move, drawn with a second head where the way back is legal too."""

    start: Status
    end: Status
    both_ways: bool


def from_anywhere() -> frozenset[Status]:
    """States that may follow every other one."""
    return frozenset(
        end for end in Status if all(end in LEGAL_MOVES[one] for one in Status if one is not end)
    )


def lines() -> list[Line]:
    """The lines between states; those to `from_anywhere()` start at the frame instead."""
    found: list[Line] = []
    for start in Status:
        for end in Status:
            if end not in LEGAL_MOVES[start] or end in from_anywhere():
                continue
            way_back = start in LEGAL_MOVES[end] and start not in from_anywhere()
            if not way_back or Line(end, start, both_ways=True) not in found:
                found.append(Line(start, end, both_ways=way_back))
    return found


def draw(*, standalone: bool = True) -> str:
    """Return the SVG.

    Args:
        standalone: As a separate file, in the colours of the reader's system; otherwise to be
            put into a page, whose colour of text it takes.
    """
    opening = (
        f'<svg class="states" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{_description()}" '
        'font-family="system-ui, sans-serif" font-size="16" fill="none" stroke="currentColor" '
        'stroke-width="1.5">'
    )
    parts = [
        opening,
        _STYLE if standalone else "",
        f"<defs>{_HEAD}</defs>",
        _rectangle(*FRAME, radius=14, extra='stroke-dasharray="5 5" opacity="0.5"'),
        *(_exit(status) for status in sorted(from_anywhere())),
        *(_line(line) for line in lines()),
        *(_box(status) for status in Status),
        "</svg>",
    ]
    return "".join(parts) + ("\n" if standalone else "")


def _description() -> str:
    moves = {one: ", ".join(sorted(LEGAL_MOVES[one])) for one in Status}
    return "Moves: " + "; ".join(f"{one} to {ends}" for one, ends in moves.items() if ends)


def _rectangle(x: float, y: float, width: float, height: float, *, radius: int, extra: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="{radius}" {extra}/>'


def _box(status: Status) -> str:
    x, y = CENTRES[status]
    corner = (x - BOX[0] / 2, y - BOX[1] / 2)
    final = "" if LEGAL_MOVES[status] else 'stroke-width="3"'
    text = (
        f'<text x="{x}" y="{y + 5}" text-anchor="middle" fill="currentColor" stroke="none">'
        f"{status}</text>"
    )
    return _rectangle(*corner, *BOX, radius=9, extra=final) + text


def _exit(status: Status) -> str:
    x, y = CENTRES[status]
    return _path(f"M{x} {FRAME[1] + FRAME[3]}V{y - BOX[1] // 2}", both_ways=False)


def _line(line: Line) -> str:
    """A straight line between the sides that face, or a way around what lies between."""
    (x0, y0), (x1, y1) = CENTRES[line.start], CENTRES[line.end]
    half_width, half_height = BOX[0] // 2, BOX[1] // 2
    right, down = (1 if x1 > x0 else -1), (1 if y1 > y0 else -1)
    if x0 != x1 and y0 != y1:
        return _corner(line)
    if x0 != x1:
        data = f"M{x0 + right * half_width} {y0}H{x1 - right * half_width}"
    elif _is_blocked(line):
        edge = x0 + half_width
        bulge = edge + min(96, abs(y1 - y0) // 4)
        data = f"M{edge} {y0}C{bulge} {y0} {bulge} {y1} {edge} {y1}"
    else:
        data = f"M{x0} {y0 + down * half_height}V{y1 - down * half_height}"
    return _path(data, both_ways=line.both_ways)


def _corner(line: Line) -> str:
    """Up or down from the box beside the column, then across to the one in it."""
    column = CENTRES[Status.IDLE][0]
    beside, inside = CENTRES[line.start], CENTRES[line.end]
    is_reversed = beside[0] == column
    if is_reversed:
        beside, inside = inside, beside
    (x0, y0), (x1, y1) = beside, inside
    right, down, bend = (1 if x1 > x0 else -1), (1 if y1 > y0 else -1), 12
    data = (
        f"M{x0} {y0 + down * BOX[1] // 2}V{y1 - down * bend}"
        f"Q{x0} {y1} {x0 + right * bend} {y1}H{x1 - right * BOX[0] // 2}"
    )
    return _path(data, both_ways=line.both_ways, backwards=is_reversed)


def _is_blocked(line: Line) -> bool:
    (x, y0), (_, y1) = CENTRES[line.start], CENTRES[line.end]
    return any(cx == x and min(y0, y1) < cy < max(y0, y1) for cx, cy in CENTRES.values())


def _path(data: str, *, both_ways: bool, backwards: bool = False) -> str:
    start = ' marker-start="url(#head)"' if both_ways or backwards else ""
    end = ' marker-end="url(#head)"' if both_ways or not backwards else ""
    return f'<path d="{data}"{start}{end}/>'


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
