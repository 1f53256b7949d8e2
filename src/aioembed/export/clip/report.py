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
    from aioembed.export.clip.norms import NormChoice
    from aioembed.export.lowering import Delegation

__all__ = ["ClipReport", "Int8Changes"]

_RUNS = 10


@dataclass(frozen=True)
class Int8Changes:
    """What int8 made necessary.

    Attributes:
        products: Elementwise products that balancing put in front of linears.
        exempt: Names of the linears that stay fp32.
    """

    products: int = 0
    exempt: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipReport:
    """What was exported.

    Attributes:
        path: The file.
        size_bytes: Of the file.
        norm: Form of the norms.
        norm_reason: Why that one.
        changes: What int8 made necessary.
        delegate_calls: How many times one forward pass enters XNNPACK.
        ops_outside: Operators outside any delegate, each as often as it runs.
        samples: How many inputs the program was judged on.
        cosine: Lowest cosine between the program's vectors and transformers' own.
        max_difference: Largest difference between their values.
        latency_ms: Median time of the first sample on this machine, in milliseconds.
    """

    path: Path
    size_bytes: int
    norm: str
    norm_reason: str
    changes: Int8Changes
    delegate_calls: int
    ops_outside: tuple[str, ...]
    samples: int
    cosine: float
    max_difference: float
    latency_ms: float

    @classmethod
    def of(
        cls,
        path: Path,
        delegation: Delegation,
        choice: NormChoice,
        samples: Sequence[tuple[NDArray[Any], ...]],
        wanted: NDArray[np.float32],
        *,
        changes: Int8Changes,
    ) -> Self:
        """Judge a program that was written.

        Args:
            path: The file.
            delegation: What XNNPACK took of it.
            choice: Of the norms.
            samples: Inputs.
            wanted: Their vectors of length 1 by transformers, `(samples, embedding_dim)`.
            changes: What int8 made necessary.
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
            norm=choice.form,
            norm_reason=choice.reason,
            changes=changes,
            delegate_calls=delegation.calls,
            ops_outside=delegation.ops_outside,
            samples=len(samples),
            cosine=float(cosines.min()),
            max_difference=float(np.abs(vectors - wanted).max()),
            latency_ms=latency,
        )

    def __str__(self) -> str:
        """A few lines for people."""
        counts = Counter(self.ops_outside)
        difference = f"{self.max_difference:.1e}, on {self.samples} samples"
        outside = ", ".join(f"{name} x{count}" for name, count in counts.items()) or "none"
        lines = [
            f"file            {self.path} ({self.size_bytes / 1e6:.1f} MB)",
            f"norms           {self.norm}: {self.norm_reason}",
            f"delegate calls  {self.delegate_calls}; operators outside: {outside}",
            f"to transformers cosine >= {self.cosine:.7f}, largest difference {difference}",
            f"latency         {self.latency_ms:.1f} ms (median of {_RUNS} runs here)",
        ]
        if self.changes.exempt:
            lines.insert(2, f"kept in fp32    {', '.join(self.changes.exempt)}")
        if self.changes.products:
            lines.insert(2, f"balancing       {self.changes.products} products in front of fc2")
        return "\n".join(lines)


def _latency_ms(program: Program, sample: tuple[NDArray[Any], ...]) -> float:
    """Return the median time of a run."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        program.run(*sample)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
