"""A million small generated images through one stream: memory does not grow; the rate.

    python benchmarks/million.py [--items 1000000] [--minutes 0] [--unordered]

The input is a generator, so no image exists before it is wanted. `--minutes` ends it earlier.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator

import anyio
import numpy as np
import psutil
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Ok

REPORTS = 20
ALLOWED_GROWTH = 5e6


def images(count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    ramp = np.linspace(0, 255, 32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)
    for number in range(count):
        yield number, np.roll(ramp, number % 3072) ^ np.uint8(number % 251)


async def run(items: int, minutes: float, *, ordered: bool) -> list[int]:
    memory: list[int] = []
    process = psutil.Process()
    started = time.perf_counter()
    limit = started + minutes * 60 if minutes else float("inf")
    next_report = started + 5
    count = 0
    async with (
        ImageEmbeddings() as model,
        model.embed_stream(images(items), keyed=True, ordered=ordered) as results,
    ):
        async for result in results:
            assert isinstance(result, Ok)
            assert not ordered or result.key == count
            count += 1
            now = time.perf_counter()
            if now >= next_report or count == items:
                memory.append(process.memory_info().rss)
                rate = count / (now - started)
                print(f"{count:9,} {rate:8.0f}/s {memory[-1] / 1e6:8.1f} MB", flush=True)
                next_report = now + max(5.0, (now - started) / REPORTS)
            if now > limit:
                break
    print(f"{count:,} images, {count / (time.perf_counter() - started):.0f}/s")
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--unordered", action="store_true")
    options = parser.parse_args()
    memory = anyio.run(lambda: run(options.items, options.minutes, ordered=not options.unordered))
    quarter = max(1, len(memory) // 4)
    growth = statistics.median(memory[-quarter:]) - statistics.median(memory[:quarter])
    print(f"memory, last quarter against first: {growth / 1e6:+.1f} MB")
    sys.exit(growth > ALLOWED_GROWTH)


if __name__ == "__main__":
    main()
