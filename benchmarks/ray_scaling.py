"""Images per second of 1 and 2 Ray Data actors with one CPU each, and of no Ray at all.

    python benchmarks/ray_scaling.py [--images 2000] [--side 224] [--model NAME] [--rounds 3]

The clock runs from the first batch that is done, so that starting the actors does not count. The
images are JPEG files in memory; `--model` may be a path, such as that of an exported program.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from contextlib import closing

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback only
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image

from aioembed import Threads
from aioembed.integrations.ray import ImageEmbedder, embed_images

BATCH = 50


def drawn_images(count: int, side: int) -> list[bytes]:
    """Return JPEG files, a few of them drawn and repeated."""
    drawn = []
    for number in range(16):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
        drawn.append(file.getvalue())
    return [drawn[number % len(drawn)] for number in range(count)]


def alone(images: list[bytes], model: str) -> float:
    """Return the rate of one embedder in this process, on one thread."""
    batches = [pa.table({"image": images[at : at + BATCH]}) for at in range(0, len(images), BATCH)]
    threads = Threads(inference=1, preprocess=1)
    with closing(ImageEmbedder(model, threads=threads, keep_images=False)) as embedder:
        embedder(batches[0])
        started = time.perf_counter()
        for batch in batches[1:]:
            embedder(batch)
        return (len(images) - BATCH) / (time.perf_counter() - started)


def by_ray(images: list[bytes], model: str, actors: int) -> float:
    """Return the rate of so many actors."""
    dataset = ray.data.from_items(
        [{"image": image} for image in images], override_num_blocks=len(images) // BATCH
    ).materialize()
    done = embed_images(dataset, model, actors=actors, batch_size=BATCH, keep_images=False)
    rows, first, first_rows, last = 0, 0.0, 0, 0.0
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        assert isinstance(batch, pa.Table)
        last = time.perf_counter()
        rows += batch.num_rows
        if not first:
            first, first_rows = last, rows
    assert rows == len(images)
    return (rows - first_rows) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images = drawn_images(options.images, options.side)
    ray.init(
        num_cpus=2, object_store_memory=400_000_000, include_dashboard=False, log_to_driver=False
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 300
    found: dict[str, list[float]] = {"no Ray, 1 CPU": [], "1 actor": [], "2 actors": []}
    for _ in range(options.rounds):
        found["no Ray, 1 CPU"].append(alone(images, options.model))
        for actors, name in ((1, "1 actor"), (2, "2 actors")):
            found[name].append(by_ray(images, options.model, actors))
    ray.shutdown()
    rates = {name: statistics.median(runs) for name, runs in found.items()}
    for name, rate in rates.items():
        print(f"{name:14} {rate:7.1f} images/s  ({', '.join(f'{run:.1f}' for run in found[name])})")
    print(f"1 to 2 actors: x {rates['2 actors'] / rates['1 actor']:.2f}")
    print(f"1 actor against no Ray: x {rates['1 actor'] / rates['no Ray, 1 CPU']:.2f}")


if __name__ == "__main__":
    main()
