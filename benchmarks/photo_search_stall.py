"""How long the photo search's event loop stands still while it indexes, types and scrolls.

    python benchmarks/photo_search_stall.py [--photos 1000] [--rounds 3]

The app of `examples/photo_search` runs headless in a process of its own and indexes drawn photos;
meanwhile a pilot types into the search, searches, and scrolls the results. A heartbeat asks to be
woken every millisecond; a stall is how much later than that it is. `idle` is the app without
anything to index or to do, and `floor` the machine's share: the heartbeat in a process that does
nothing else, while other processes keep every CPU busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "photo_search"
PERIOD = 0.001
LONGEST = 10.0
KINDS = ("indexing", "idle", "floor")


def draw_photos(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        blocks = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(blocks).resize((1600, 1200), Image.Resampling.BICUBIC)
        photo.save(folder / f"photo{number}.jpg", quality=85)


async def heartbeat(stalls: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PERIOD)
        stalls.append((time.perf_counter() - before - PERIOD) * 1e3)


async def use_app(folder: Path, *, idle: bool) -> tuple[list[float], int, float]:
    """Return the stalls, how many photos were indexed, and in how many seconds."""
    sys.path.insert(0, str(EXAMPLE))
    from photo_app import PhotoSearch

    from aioembed import GIST_512, ImageEmbeddings

    with tempfile.TemporaryDirectory() as elsewhere:
        app = PhotoSearch(folder, Path(elsewhere) / "index.db", model=ImageEmbeddings(GIST_512))
        async with app.run_test(size=(120, 40)) as pilot:
            while app.syncing is None or not app.report.embedded + idle:
                await pilot.pause()
            began = time.perf_counter()
            stalls: list[float] = []
            beating = asyncio.create_task(heartbeat(stalls))
            if idle:
                await asyncio.sleep(10)
            while not app.syncing.done() and not idle:
                await type_and_scroll(pilot)
            beating.cancel()
            return stalls, app.report.done, time.perf_counter() - began


async def type_and_scroll(pilot) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    app = pilot.app
    app.query_one("#query").focus()
    app.query_one("#query").value = ""
    for key in ("p", "h", "o", "t", "o", "1", "enter"):
        await pilot.press(key)
    await app.workers.wait_for_complete()
    app.query_one("#results").focus()
    for key in ("down", "down", "pagedown", "pagedown", "pageup", "up"):
        await pilot.press(key)


async def floor() -> tuple[list[float], int, float]:
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]  # noqa: ASYNC220
    try:
        stalls: list[float] = []
        beating = asyncio.create_task(heartbeat(stalls))
        await asyncio.sleep(10)
        beating.cancel()
        return stalls, 0, 10.0
    finally:
        for other in others:
            other.kill()
            other.wait()


def child(kind: str, folder: Path) -> None:
    if kind == "floor":
        stalls, photos, seconds = asyncio.run(floor())
    else:
        stalls, photos, seconds = asyncio.run(use_app(folder, idle=kind == "idle"))
    p99 = statistics.quantiles(stalls, n=100, method="inclusive")[98]
    over = sum(stall > LONGEST for stall in stalls)
    figures = {"longest": max(stalls), "p99": p99, "beats": len(stalls), "over": over}
    print(json.dumps({**figures, "photos": photos, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        (photos := Path(folder) / "photos").mkdir()
        (empty := Path(folder) / "empty").mkdir()
        draw_photos(photos, options.photos)
        print(f"{'':10} {'longest':>10} {'p99':>10} {'> 10 ms':>8} {'beats':>8} {'photos/s':>9}")
        for _ in range(options.rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, "--child", kind, "--folder"]
                command.append(str(photos if kind == "indexing" else empty))
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                one = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{kind:10} {one['longest']:7.1f} ms {one['p99']:7.2f} ms {one['over']:>8} "
                    f"{one['beats']:>8} {one['photos'] / one['seconds']:>9.1f}"
                )


if __name__ == "__main__":
    main()
