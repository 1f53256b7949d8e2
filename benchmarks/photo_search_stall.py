"""How long the event loop of the photo search stalls while it indexes and keys are typed.

    python benchmarks/photo_search_stall.py [--photos 1000] [--rounds 3] [--sizes 80x24 120x40]
        [--kinds indexing typing idle textual floor]

`examples/photo_search.py` runs in a pseudo-terminal, in its own process, and indexes drawn photos.
Meanwhile the terminal sends keys as fast as a key that is held down repeats: a search is typed, and
its results are scrolled. A heartbeat asks to be woken every millisecond; a stall is how late it is.
`typing` is the app with the same keys after indexing, `idle` without keys, `textual` a bare app of
Textual's widgets with the same keys. `floor` is the machine's share: the heartbeat in a process
that does nothing else, while other processes keep every CPU busy. `its CPU` is the most CPU time of
the loop's thread from one beat to the next; the rest of a stall is waiting for a CPU or the GIL.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import itertools
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aioembed import ImageEmbeddings
from aioembed.index import EmbeddingIndex

EXAMPLES = Path(__file__).parents[1] / "examples"
PERIOD = 0.001
SHOWN_BYTES = 4000
LONGEST = 10.0
IDLE_SECONDS = 10
KINDS = ("indexing", "typing", "idle", "textual", "floor")
WITH_KEYS = {"indexing", "typing", "textual"}
IN_EACH_SIZE = {"indexing", "typing"}
KEY_SECONDS = 1 / 30
TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
UP, DOWN, PAGE_UP, PAGE_DOWN = b"\x1b[A", b"\x1b[B", b"\x1b[5~", b"\x1b[6~"
FOCUS_SEARCH, CLEAR, ENTER = b"\x06", b"\x15", b"\r"
NONE = b""
TYPED = (
    FOCUS_SEARCH,
    NONE,
    NONE,
    CLEAR,
    b"p",
    b"h",
    b"o",
    b"t",
    b"o",
    b"1",
    ENTER,
    NONE,
    NONE,
    NONE,
)
SCROLLED = (DOWN, DOWN, PAGE_DOWN, PAGE_DOWN, *[DOWN] * 8, *[UP] * 6, PAGE_UP, UP)


def draw_photos(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        blocks = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(blocks).resize((1600, 1200), Image.Resampling.BICUBIC)
        photo.save(folder / f"photo{number}.jpg", quality=85)


@dataclass
class Beats:
    """How late each beat was, and how much CPU time the loop's thread took for it, in ms."""

    stalls: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)


async def heartbeat(beats: Beats) -> None:
    while True:
        before, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(PERIOD)
        beats.stalls.append((time.perf_counter() - before - PERIOD) * 1e3)
        beats.work.append((time.thread_time() - cpu) * 1e3)


async def use_app(folder: Path, index_file: Path, *, indexing: bool) -> tuple[Beats, int, float]:
    """Return the stalls, how many photos were indexed, and in how many seconds."""
    sys.path.insert(0, str(EXAMPLES))
    from photo_search import PhotoSearch

    beats = Beats()
    began = seconds = 0.0

    def is_done() -> bool:
        return not app.report.is_scanning and app.report.done == app.report.total

    async def until(condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def watch() -> None:
        nonlocal began, seconds
        await until(lambda: app.report.embedded if indexing else is_done())
        began = time.perf_counter()
        beating = asyncio.create_task(heartbeat(beats))
        await (until(is_done) if indexing else asyncio.sleep(IDLE_SECONDS))
        beating.cancel()
        seconds = time.perf_counter() - began
        app.exit()

    async with EmbeddingIndex(index_file) as index:
        app = PhotoSearch(folder, index, ImageEmbeddings())
        watching = asyncio.create_task(watch())
        await app.run_async()
        await watching
    return beats, app.report.embedded, seconds


async def use_textual() -> tuple[Beats, int, float]:
    from textual.app import App, ComposeResult
    from textual.widgets import Footer, Input, OptionList

    class Bare(App[None]):
        BINDINGS = [("ctrl+f", "focus('query')", "Search")]  # noqa: RUF012  # as Textual has it

        def compose(self) -> ComposeResult:
            yield Input(id="query")
            yield OptionList(*(f"result {number}\n\n\n" for number in range(24)))
            yield Footer()

    beats = Beats()

    async def watch() -> None:
        await asyncio.sleep(1)
        beating = asyncio.create_task(heartbeat(beats))
        await asyncio.sleep(IDLE_SECONDS)
        beating.cancel()
        app.exit()

    app = Bare()
    watching = asyncio.create_task(watch())
    await app.run_async()
    await watching
    return beats, 0, IDLE_SECONDS


async def floor() -> tuple[Beats, int, float]:
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]  # noqa: ASYNC220
    try:
        beats = Beats()
        beating = asyncio.create_task(heartbeat(beats))
        await asyncio.sleep(IDLE_SECONDS)
        beating.cancel()
        return beats, 0, IDLE_SECONDS
    finally:
        for other in others:
            other.kill()
            other.wait()


def child(kind: str, folder: Path, figures: Path) -> None:
    if kind in {"floor", "textual"}:
        beats, photos, seconds = asyncio.run(floor() if kind == "floor" else use_textual())
    else:
        index = folder.with_name(f"{folder.name}.db")
        if kind == "indexing":
            index.unlink(missing_ok=True)
        beats, photos, seconds = asyncio.run(use_app(folder, index, indexing=kind == "indexing"))
    found = {
        "longest": max(beats.stalls),
        "p99": statistics.quantiles(beats.stalls, n=100, method="inclusive")[98],
        "over": sum(stall > LONGEST for stall in beats.stalls),
        "beats": len(beats.stalls),
        "work": max(beats.work),
        "rate": photos / seconds,
    }
    figures.write_text(json.dumps(found))


def run_in_terminal(command: list[str], size: tuple[int, int], *, types: bool) -> None:
    """Run a command in a pseudo-terminal; press keys, if asked to, from its first output on."""
    master, slave = pty.openpty()
    columns, rows = size
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, **TERMINAL}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    keys, due, last = itertools.cycle(TYPED + SCROLLED), float("inf"), b""
    while process.poll() is None:
        if select.select([master], [], [], KEY_SECONDS / 4)[0]:
            last = (last + read(master))[-SHOWN_BYTES:]
            due = time.monotonic() if types and due == float("inf") else due
        if time.monotonic() >= due:
            os.write(master, next(keys))
            due += KEY_SECONDS
    os.close(master)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {last.decode()}")


def read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # the other side was closed
        return b""


def measure(kind: str, folder: Path, size: str) -> None:
    columns, rows = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as elsewhere:
        figures = Path(elsewhere) / "figures.json"
        command = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
        command += ["--figures", str(figures)]
        run_in_terminal(command, (columns, rows), types=kind in WITH_KEYS)
        one = json.loads(figures.read_text())
    print(
        f"{kind:10} {size:>8} {one['longest']:7.1f} ms {one['p99']:7.2f} ms {one['over']:>8} "
        f"{one['beats']:>8} {one['work']:>10.1f} ms {one['rate']:>9.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["80x24", "120x40"], metavar="COLUMNSxROWS")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        (photos := Path(folder) / "photos").mkdir()
        (empty := Path(folder) / "empty").mkdir()
        draw_photos(photos, options.photos)
        print(f"{'':19} {'longest':>10} {'p99':>10} {'> 10 ms':>8} {'beats':>8}", end="")
        print(f" {'its CPU':>13} {'photos/s':>9}")
        for _ in range(options.rounds):
            for kind in options.kinds:
                for size in options.sizes if kind in IN_EACH_SIZE else options.sizes[-1:]:
                    measure(kind, photos if kind in IN_EACH_SIZE else empty, size)


if __name__ == "__main__":
    main()
