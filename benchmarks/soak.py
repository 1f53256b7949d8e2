"""Full load for a quarter of an hour: memory, descriptors and threads must not grow.

    python benchmarks/soak.py [--minutes 15] [--callers 64] [--model PATH] [--backend asyncio]

Callers embed JPEGs and arrays continuously. One image in ten is broken, one call in ten is
cancelled, one in ten has a deadline that it may miss, and some streams are not read to the end.
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import statistics
import sys
from dataclasses import dataclass

import anyio
import numpy as np
import psutil
from PIL import Image

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings
from aioembed.errors import ForwardTimeout, ImageDecodeError

ALLOWED_MEMORY = 8e6
SAMPLES = 90


@dataclass(frozen=True)
class Sample:
    """What the process holds at one moment."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Sample:
        """Measure."""
        gc.collect()
        process = psutil.Process()
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


def drawn(seed: int) -> bytes | np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8)
    if seed % 2:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


async def caller(model: ImageEmbeddings, seed: int, over: anyio.Event) -> None:
    dice = random.Random(seed)
    items = [drawn(number) for number in range(8)]
    while not over.is_set():
        kind = dice.randrange(10)
        try:
            if kind == 0:
                await model.forward(b"broken")
            elif kind == 1:
                with anyio.move_on_after(dice.random() / 10):
                    await model.forward(dice.choice(items))
            elif kind == 2:
                await model.forward(dice.choice(items), timeout=dice.random() / 2 + 1e-6)
            elif kind == 3 and seed % 8 == 0:
                async for result in model.embed_stream(iter(items)):
                    if result.key == 3:
                        break
            else:
                await model.forward(dice.choice(items))
        except (ImageDecodeError, ForwardTimeout):
            pass


async def watch(
    model: ImageEmbeddings, samples: list[Sample], minutes: float, over: anyio.Event
) -> None:
    for number in range(SAMPLES):
        await anyio.sleep(minutes * 60 / SAMPLES)
        samples.append(Sample.now())
        if number % 5 == 4:
            figures, sample = model.statistics(), samples[-1]
            print(
                f"{number + 1:3}/{SAMPLES} {figures.submitted:9,} calls "
                f"{figures.throughput:7.0f}/s {sample.memory / 1e6:7.1f} MB "
                f"{sample.descriptors} descriptors {sample.threads} threads",
                flush=True,
            )
    over.set()


async def run(options: argparse.Namespace) -> list[Sample]:
    samples: list[Sample] = []
    over = anyio.Event()
    async with ImageEmbeddings(options.model or EFFICIENTNET_LITE0) as model:
        await model.load()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, model, samples, options.minutes, over)
            for seed in range(options.callers):
                tasks.start_soon(caller, model, seed, over)
        print(model.statistics())
        assert model.statistics().pending == 0
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--model")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    samples = anyio.run(run, options, backend=options.backend)
    early, late = samples[SAMPLES // 6 : SAMPLES // 2], samples[-SAMPLES // 3 :]
    memory = statistics.median(s.memory for s in late) - statistics.median(s.memory for s in early)
    descriptors = max(s.descriptors for s in late) - max(s.descriptors for s in early)
    threads = max(s.threads for s in late) - max(s.threads for s in early)
    print(f"growth: {memory / 1e6:+.1f} MB, {descriptors:+} descriptors, {threads:+} threads")
    sys.exit(memory > ALLOWED_MEMORY or descriptors > 2 or threads > 0)


if __name__ == "__main__":
    main()
