"""Loads, runs and closes a program in rounds, and prints the memory kept after each, in bytes.

python load_rounds.py PROGRAM ROUNDS
"""

from __future__ import annotations

import sys

import numpy as np
import psutil

from aioembed.runtime import Program


def main(path: str, rounds: int) -> None:
    process = psutil.Process()
    for _ in range(rounds):
        program = Program.load(path)
        program.run(*[np.ones(t.shape, t.dtype) for t in program.methods["forward"].inputs])
        program.close()
        print(process.memory_info().rss)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
