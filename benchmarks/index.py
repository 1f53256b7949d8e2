"""How fast an index stores and finds vectors, and what a kill while it writes loses.

    python benchmarks/index.py --photos ../shared/photos [--vectors 100000] [--dims 1280 512]

The vectors are the embedded model's of augmented photographs (crops, flips, brightness, colour).
Where there are more vectors than were embedded (--embedded), the others are mixes of two, mostly of
the same photograph. Sizes below the model's come from a random projection. The queries are further
augmentations.

Vectors are added in transactions of 1,000; each is on the disk before the next begins. Searches ask
for the 10 nearest; `numpy` is the same search over a matrix in memory, in the same process,
`usearch` an HNSW graph where that package is installed. Recall is the share of numpy's 10 that is
returned. Then a child writes on into a copy of the file and is killed at random times; everything
that it had said to be committed must be there when the copy is opened again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anyio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from aioembed import EmbeddingSpace, ImageEmbeddings, Ok
from aioembed.index import EmbeddingIndex

SPACE = EmbeddingSpace(base="0123456789abcdef")
TRANSACTION = 1000
K = 10
Rows = NDArray[np.float32]


def unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def augmented(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = rng.uniform(0.5, 1)
    width, height = int(picture.width * scale), int(picture.height * scale)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    changed = picture.resize((224, 224), box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed = ImageEnhance.Brightness(changed).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Color(changed).enhance(rng.uniform(0.5, 1.5))


async def embed_augmented(paths: list[Path], count: int) -> tuple[Rows, NDArray[np.int64]]:
    """Return vectors, and of which photograph each is."""
    rng = np.random.default_rng(0)

    def pictures() -> Iterator[tuple[int, Image.Image]]:
        for number in range(count):
            photograph = number % len(paths)
            with Image.open(paths[photograph]) as picture:
                yield photograph, augmented(picture.convert("RGB"), rng)

    rows, photographs = [], []
    async with ImageEmbeddings() as model, model.embed_stream(pictures(), keyed=True) as results:
        async for result in results:
            if isinstance(result, Ok):
                rows.append(result.embedding)
                photographs.append(result.key)
    return np.stack(rows), np.array(photographs)


def extended(rows: Rows, photographs: NDArray[np.int64], count: int) -> Rows:
    """Return `count` rows: the given, and mixes of two that are of the same photograph."""
    rng = np.random.default_rng(1)
    order = np.argsort(photographs, kind="stable")
    firsts = rng.integers(0, len(rows) - 1, max(0, count - len(rows)))
    shares = rng.uniform(0.2, 0.8, (len(firsts), 1)).astype(np.float32)
    mixed = rows[order[firsts]] * shares + rows[order[firsts + 1]] * (1 - shares)
    return unit(np.concatenate([rows, mixed])[:count])


def projected(rows: Rows, dim: int) -> Rows:
    if dim >= rows.shape[1]:
        return rows
    directions = np.random.default_rng(2).standard_normal((rows.shape[1], dim), dtype=np.float32)
    return unit(rows @ np.linalg.qr(directions)[0])


async def build(path: Path, rows: Rows) -> None:
    began = time.perf_counter()
    async with EmbeddingIndex(path, space=SPACE) as index:
        for start in range(0, len(rows), TRANSACTION):
            part = rows[start : start + TRANSACTION]
            await index.add_many((str(start + row), vector) for row, vector in enumerate(part))
    seconds = time.perf_counter() - began
    print(f"build, index: {len(rows) / seconds:,.0f} vectors/s")


def numpy_search(rows: Rows, query: Rows) -> list[str]:
    similarities = rows @ query
    nearest = np.argpartition(-similarities, K)[:K]
    return [str(row) for row in nearest[np.argsort(-similarities[nearest])]]


def spread(seconds: list[float]) -> str:
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"p50 {statistics.median(seconds) * 1e3:7.1f} ms   p99 {p99 * 1e3:7.1f} ms"


async def compare(path: Path, rows: Rows, queries: Rows) -> None:
    ours: list[float] = []
    peer: list[float] = []
    found = 0
    async with EmbeddingIndex(path) as index:
        for query in queries:
            began = time.perf_counter()
            hits = await index.search(query, K)
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            best = numpy_search(rows, query)
            peer.append(time.perf_counter() - began)
            found += len({hit.key for hit in hits} & set(best))
    print(f"search, index: {spread(ours)}")
    print(f"search, numpy: {spread(peer)}")
    print(f"index / numpy: {statistics.median(ours) / statistics.median(peer):.2f} (medians)")
    print(f"recall@{K} against numpy: {found / (K * len(queries)):.4f}")


async def write_on(path: Path, dim: int) -> None:
    """In the child: add indefinitely, and print after each transaction how many were added."""
    rows = unit(np.random.default_rng(2).standard_normal((100, dim), dtype=np.float32))
    added = 0
    async with EmbeddingIndex(path, space=SPACE) as index:
        while True:
            await index.add_many((f"new-{added + row}", vector) for row, vector in enumerate(rows))
            added += len(rows)
            print(added, flush=True)


def write_until_killed(path: Path, dim: int) -> int:
    """Return how many vectors the child had said to be committed."""
    command = [sys.executable, __file__, "--child", str(path), "--dim", str(dim)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [int(child.stdout.readline())]
        time.sleep(random.uniform(0, 0.5))
        child.kill()
        told += [int(line) for line in child.stdout.read().split()]
    return told[-1]


async def count(path: Path) -> tuple[int, int]:
    """Return how many vectors there are in all, and how many of the child's."""
    async with EmbeddingIndex(path) as index:
        return await index.count(), len(await index.keys("new-"))


def kill_in_mid_write(path: Path, before: int, dim: int, kills: int) -> None:
    lost = halves = committed = 0
    for kill in range(kills):
        copy = path.with_name(f"copy-{kill}.db")
        shutil.copy(path, copy)
        told = write_until_killed(copy, dim)
        total, kept = anyio.run(count, copy)
        halves += kept % 100
        lost += max(0, told - kept) + (before + kept - total)
        committed += told
        for file in copy.parent.glob(f"{copy.name}*"):
            file.unlink()
    print(
        f"killed {kills} times in mid-write: {committed} new vectors committed, {lost} lost, "
        f"{halves} of halved transactions"
    )


def compare_usearch(rows: Rows, queries: Rows) -> None:
    if find_spec("usearch") is None:
        print("usearch: not installed")
        return
    from usearch.index import Index

    began = time.perf_counter()
    graph = Index(ndim=rows.shape[1], metric="cos", dtype="f32")
    graph.add(np.arange(len(rows)), rows)
    print(f"usearch, build: {len(rows) / (time.perf_counter() - began):,.0f} vectors/s")
    seconds, found = [], 0
    for query in queries:
        began = time.perf_counter()
        keys = graph.search(query, K).keys
        seconds.append(time.perf_counter() - began)
        found += len({str(key) for key in keys} & set(numpy_search(rows, query)))
    print(f"search, usearch: {spread(seconds)}   recall@{K} {found / (K * len(queries)):.4f}")


def embedded_rows(options: argparse.Namespace) -> tuple[Rows, NDArray[np.int64]]:
    if options.keep is not None and options.keep.exists():
        with np.load(options.keep) as kept:
            return kept["rows"], kept["photographs"]
    paths = sorted(options.photos.glob("*.jpg"))
    rows, photographs = anyio.run(embed_augmented, paths, options.embedded + options.queries)
    if options.keep is not None:
        np.savez(options.keep, rows=rows, photographs=photographs)
    return rows, photographs


def run(options: argparse.Namespace) -> None:
    embedded, photographs = embedded_rows(options)
    queries = embedded[options.embedded :]
    every = extended(embedded[: options.embedded], photographs[: options.embedded], options.vectors)
    for dim in options.dims:
        print(f"--- {len(every):,} vectors of {dim} values")
        rows, asked = projected(every, dim), projected(queries, dim)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.db"
            anyio.run(build, path, rows)
            anyio.run(compare, path, rows, asked)
            compare_usearch(rows, asked)
            print(f"on the disk: {path.stat().st_size / 1e6:.0f} MB")
            kill_in_mid_write(path, len(rows), dim, options.kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--embedded", type=int, default=8_000)
    parser.add_argument(
        "--keep", type=Path, metavar="FILE.npz", help="keep what was embedded for the next run"
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[1280, 512])
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        anyio.run(write_on, options.child, options.dim)
    else:
        run(options)


if __name__ == "__main__":
    main()
