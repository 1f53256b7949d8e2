"""Copies of one program that run beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from queue import LifoQueue
from typing import Any

from numpy.typing import NDArray

from ..runtime import Program

__all__ = ["Replicas"]


class Replicas:
    """Copies of one program; each run takes one that is free, and waits where none is.

    Args:
        programs: At least one.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self._programs = tuple(programs)
        self._free: LifoQueue[Program] = LifoQueue()  # what ran last has its weights in the cache
        for program in programs:
            self._free.put(program)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._programs)

    def run(self, *inputs: NDArray[Any], method: str) -> tuple[NDArray[Any], ...]:
        """Run a method as `Program.run` does, on one of the copies. Blocks."""
        program = self._free.get()
        try:
            return program.run(*inputs, method=method)
        finally:
            self._free.put(program)

    def close(self) -> None:
        """Free the memory of all of them, after the runs in flight. Blocks; idempotent."""
        for program in self._programs:
            program.close()
