from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "tiny_image.pte"
_ROUNDS = 100


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("slow_product.pte", marks=pytest.mark.slow),
        "linear_xnnpack.pte",
        str(_PROGRAM),
    ],
)
def test_a_hundred_loads_and_closes_leave_memory_where_it_was(
    programs: Path, children: Path, path: str
) -> None:
    program = programs / path
    if not program.exists():
        pytest.skip("the embedded model is not built")
    child = subprocess.run(
        [sys.executable, str(children / "load_rounds.py"), str(program), str(_ROUNDS)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    kept = [int(line) for line in child.stdout.split()]
    assert len(kept) == _ROUNDS
    growth = kept[-1] - kept[9]
    print(f"\n{program.name}: {kept[0] / 1e6:.1f} MB, after 100 rounds {kept[-1] / 1e6:.1f} MB")
    assert growth < 1_000_000, kept[::10]
