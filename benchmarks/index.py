"""How fast an index takes vectors and finds them, and what a kill in mid-write costs.

    python benchmarks/index.py [--vectors 100000] [--dim 512] [--queries 200] [--kills 5]

Random vectors of length 1 are added in transactions of 1,000; each is on the disk before the next
begins. Searches ask for the 10 nearest; `numpy` is the same search over a matrix in memory, in
the same process. Recall is the share of numpy's 10 that the index returns. Then a child writes on
into a copy of the file and is killed at random times; everything that it had said to be committed
must be there when the copy is opened again.
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
from pathlib import Path

import anyio
import numpy as np
from numpy.typing import NDArray

from aioembed import EmbeddingSpace
from aioembed.index import EmbeddingIndex

SPACE = EmbeddingSpace(base="0123456789abcdef")
TRANSACTION = 1000
K = 10
Rows = NDArray[np.float32]


def unit_rows(count: int, dim: int, seed: int) -> Rows:
    rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


async def build(path: Path, rows: Rows) -> None:
    began = time.perf_counter()
    async with EmbeddingIndex(path, space=SPACE) as index:
        for start in range(0, len(rows), TRANSACTION):
            part = rows[start : start + TRANSACTION]
            await index.add_many((str(start + row), vector) for row, vector in enumerate(part))
    seconds = time.perf_counter() - began
    print(f"build: {len(rows) / seconds:,.0f} vectors/s")


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
    """In the child: add for ever, and say after each transaction how many were added."""
    rows = unit_rows(100, dim, seed=2)
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


def run(options: argparse.Namespace) -> None:
    rows = unit_rows(options.vectors, options.dim, seed=0)
    queries = unit_rows(options.queries, options.dim, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.db"
        anyio.run(build, path, rows)
        anyio.run(compare, path, rows, queries)
        print(f"on the disk: {path.stat().st_size / 1e6:.0f} MB")
        kill_in_mid_write(path, options.vectors, options.dim, options.kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
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
