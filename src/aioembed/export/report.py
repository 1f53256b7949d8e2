"""What was exported, and how good and fast it is on this machine."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from aioembed.runtime import Program

if TYPE_CHECKING:
    from aioembed.export.lowering import Delegation

__all__ = ["ExportReport"]

_RUNS = 10


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: The file.
        size_bytes: Of the file.
        delegate_calls: How many times one forward pass enters XNNPACK.
        ops_outside: Operators outside any delegate, each as often as it runs.
        samples: How many inputs the program was judged on.
        cosine: Lowest cosine between the program's vectors and those of the model it was made of.
        max_difference: Largest difference between their values.
        latency_ms: Median time of the first sample on this machine, in milliseconds.
        notes: What else there is to say: a label and a line each.
        exempt: Names of the linears that stay fp32 in an int8 program.
    """

    path: Path
    size_bytes: int
    delegate_calls: int
    ops_outside: tuple[str, ...]
    samples: int
    cosine: float
    max_difference: float
    latency_ms: float
    notes: tuple[tuple[str, str], ...] = ()
    exempt: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: Path,
        delegation: Delegation,
        samples: Sequence[tuple[NDArray[Any], ...]],
        wanted: NDArray[np.float32],
        *,
        notes: Sequence[tuple[str, str]] = (),
        exempt: Sequence[str] = (),
    ) -> Self:
        """Judge a program that was written.

        Args:
            path: The file.
            delegation: What XNNPACK took of it.
            samples: Inputs.
            wanted: Their vectors of length 1 by the model itself, `(samples, embedding_dim)`.
            notes: What else there is to say.
            exempt: Names of the linears that stay fp32.
        """
        program = Program.load(path)
        try:
            vectors = np.concatenate([program.run(*sample)[0] for sample in samples])
            latency = _latency_ms(program, samples[0])
        finally:
            program.close()
        cosines = (vectors.astype(np.float64) * wanted).sum(-1)
        return cls(
            path=path,
            size_bytes=path.stat().st_size,
            delegate_calls=delegation.calls,
            ops_outside=delegation.ops_outside,
            samples=len(samples),
            cosine=float(cosines.min()),
            max_difference=float(np.abs(vectors - wanted).max()),
            latency_ms=latency,
            notes=tuple(notes),
            exempt=tuple(exempt),
        )

    def __str__(self) -> str:
        """A few lines for people."""
        counts = Counter(self.ops_outside)
        outside = ", ".join(f"{name} x{count}" for name, count in counts.items()) or "none"
        difference = f"{self.max_difference:.1e}, on {self.samples} samples"
        lines = [
            ("file", f"{self.path} ({self.size_bytes / 1e6:.1f} MB)"),
            *self.notes,
            ("delegate calls", f"{self.delegate_calls}; operators outside: {outside}"),
            ("to the original", f"cosine >= {self.cosine:.7f}, largest difference {difference}"),
            ("latency", f"{self.latency_ms:.1f} ms (median of {_RUNS} runs here)"),
        ]
        if self.exempt:
            lines.insert(-3, ("kept in fp32", ", ".join(self.exempt)))
        return "\n".join(f"{label:<16}{line}" for label, line in lines)


def _latency_ms(program: Program, sample: tuple[NDArray[Any], ...]) -> float:
    """Return the median time of a run."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        program.run(*sample)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
