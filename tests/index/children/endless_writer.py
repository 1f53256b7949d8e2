"""Adds vectors until it is killed, 50 in each transaction; prints their number after each."""

from __future__ import annotations

import sys

import anyio
import numpy as np

from aioembed import EmbeddingSpace
from aioembed.index import EmbeddingIndex


async def main(path: str) -> None:
    async with EmbeddingIndex(path, space=EmbeddingSpace(base="0123456789abcdef")) as index:
        random, stored = np.random.default_rng(0), 0
        while stored < 4000:
            rows = random.standard_normal((50, 64), dtype=np.float32)
            await index.add_many((f"{stored + row}", rows[row]) for row in range(50))
            stored += 50
            print(stored, flush=True)


anyio.run(main, sys.argv[1])
