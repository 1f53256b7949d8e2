"""Indexing a folder that changes: interrupted, killed, renamed, deleted, unmounted.

    python benchmarks/index_folder.py --photos ../shared/photos [--pictures 20000] [--threads 1]

The pictures are crops of photographs, JPEGs of 64 to 96 pixels, in folders of a thousand. Each step
runs `aioembed index` in a process, as a user would: Ctrl-C after a tenth of the pictures, SIGKILL
after another tenth, the rest, nothing new, one folder renamed, another one deleted, an empty folder
in place of the album (a drive that is not mounted), and the album back again. The table has what
each run reported, below it the last line of its stderr. `indexed` counts the vectors in the file.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from PIL import Image

from aioembed.index import EmbeddingIndex

IN_ONE_FOLDER = 1000
COLUMNS = ("embedded", "moved", "unchanged", "failed", "removed", "missing")


def make_album(photos: list[Path], album: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    names = (f"{number // IN_ONE_FOLDER:03}/{number:05}.jpg" for number in range(count))
    for number, photo in enumerate(photos):
        with Image.open(photo) as opened:
            picture = opened.convert("RGB")
        crops = count // len(photos) + (number < count % len(photos))
        for name in islice(names, crops):
            width, height = (int(rng.uniform(0.3, 1) * size) for size in picture.size)
            left = int(rng.integers(0, picture.width - width + 1))
            top = int(rng.integers(0, picture.height - height + 1))
            size = (int(rng.integers(64, 97)), int(rng.integers(64, 97)))
            (album / name).parent.mkdir(exist_ok=True)
            crop = picture.resize(size, box=(left, top, left + width, top + height))
            crop.save(album / name, quality=80)


def run_index(
    command: list[str], stop: signal.Signals | None = None, after: int = 0
) -> tuple[dict[str, Any], int, str]:
    """Run `aioembed index`; return its last report, its exit code, and the last line it said.

    Args:
        command: To run.
        stop: A signal to send to it.
        after: How many embedded pictures are reported before.
    """
    report: dict[str, Any] = {}
    with subprocess.Popen(
        [*command, "--format", "jsonl"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            found = json.loads(line)
            report = report if "error" in found else found
            if stop is not None and report.get("embedded", 0) >= after:
                process.send_signal(stop)
                stop = None
        said = process.stderr.read().splitlines()
    return report, process.returncode, said[-1] if said else ""


async def count_vectors(file: Path) -> int:
    async with EmbeddingIndex(file) as index:
        return await index.count()


def rename(source: Path, target: Path) -> None:
    source.rename(target)


def delete(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def unmount(album: Path) -> None:
    album.rename(album.with_name("away"))
    album.mkdir()


def mount(album: Path) -> None:
    album.rmdir()
    album.with_name("away").rename(album)


def live(album: Path, file: Path, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "aioembed", "index", str(album), "--index", str(file)]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--model", options.model] if options.model else []
    print(f"{'':24} {'seconds':>8} {'exit':>5}", *(f"{name:>9}" for name in COLUMNS), "  indexed")

    def step(
        name: str, change: Callable[[], object] = bool, stop: signal.Signals | None = None
    ) -> None:
        change()
        began = time.perf_counter()
        report, code, said = run_index(command, stop, options.pictures // 10)
        seconds = time.perf_counter() - began
        figures = (f"{report.get(column, 0):9,}" for column in COLUMNS)
        indexed = anyio.run(count_vectors, file)
        print(f"{name:24} {seconds:8.1f} {code:5}", *figures, f"{indexed:9,}", flush=True)
        if said:
            print(f"    {said}")

    step("Ctrl-C", stop=signal.SIGINT)
    step("kill -9", stop=signal.SIGKILL)
    step("goes on to the end")
    step("nothing has changed")
    step("a folder is renamed", lambda: rename(album / "000", album / "renamed"))
    step("another is deleted", lambda: delete(album / "001"))
    step("not mounted", lambda: unmount(album))
    step("mounted again", lambda: mount(album))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="such as tests/programs/tiny_image.pte, to be quick")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if started in the background
    with tempfile.TemporaryDirectory() as temporary:
        album = Path(temporary, "album")
        album.mkdir()
        make_album(sorted(options.photos.glob("*.jpg")), album, options.pictures)
        live(album, Path(temporary, "index.db"), options)


if __name__ == "__main__":
    main()
