"""Loads and runs damaged copies of a program and prints what became of each.

    python corrupt.py PROGRAM FOLDER FIRST LAST

A line per variant: its number, then `error`, `same`, `changed` or `foreign` (an exception that is
none of the library's).
"""

from __future__ import annotations

import random
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from aioembed.errors import AioembedError
from aioembed.runtime import Program

Arrays = tuple[np.ndarray[Any, Any], ...]

_FOREIGN_STARTS = (b"<!DOCTYPE html><html>", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"GGUF", b"")


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flip_head(content: bytearray, rng: random.Random) -> None:
    """In the first bytes, where the sizes and offsets are."""
    content[rng.randrange(min(256, len(content)))] ^= 1 << rng.randrange(8)


def zero_run(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 512))
    content[start:end] = bytes(end - start)


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def move_run(content: bytearray, rng: random.Random) -> None:
    size = rng.randrange(1, 64)
    source, target = (rng.randrange(max(1, len(content) - size)) for _ in range(2))
    content[target : target + size] = content[source : source + size]


def other_type(content: bytearray, rng: random.Random) -> None:
    start = rng.choice(_FOREIGN_STARTS)
    content[: max(len(start), 8)] = start


_DAMAGES = (flip_bits, flip_bits, flip_head, zero_run, truncate, move_run, other_type)


def damaged(whole: bytes, number: int) -> bytes:
    """Variant `number` of a program; the same one at every call."""
    rng = random.Random(number)
    content = bytearray(whole)
    if number % 50 == 49:
        return bytes(len(content))
    _DAMAGES[number % len(_DAMAGES)](content, rng)
    return bytes(content)


def run(path: Path, inputs: Arrays | None = None) -> tuple[Arrays, Arrays]:
    program = Program.load(path, threads=1)
    if inputs is None:
        rng = np.random.default_rng(0)
        inputs = tuple(
            rng.random(tensor.shape).astype(tensor.dtype)
            for tensor in program.methods["forward"].inputs
        )
    outputs = program.run(*inputs)
    program.close()
    return inputs, outputs


def same(outputs: Arrays, expected: Arrays) -> bool:
    return len(outputs) == len(expected) and all(
        output.shape == wanted.shape and np.allclose(output, wanted, rtol=1e-5, atol=1e-6)
        for output, wanted in zip(outputs, expected, strict=True)
    )


def outcome(path: Path, inputs: Arrays, expected: Arrays) -> str:
    try:
        _, outputs = run(path, inputs)
    except AioembedError:
        return "error"
    except BaseException:  # noqa: BLE001  # what it is, is the finding
        traceback.print_exc()
        return "foreign"
    return "same" if same(outputs, expected) else "changed"


def main(program: Path, folder: Path, first: int, last: int) -> None:
    whole = program.read_bytes()
    inputs, expected = run(program)
    np.seterr(all="ignore")
    for number in range(first, last):
        path = folder / f"{number}.pte"
        path.write_bytes(damaged(whole, number))
        print(number, outcome(path, inputs, expected), flush=True)
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
