"""What damaged programs do to the runtime alone.

The verifier and the runtime's own checks catch nearly all. What they cannot see is a damaged
number that still makes sense, such as the index of another weight: then the vector changes, or,
very rarely, a kernel reads beyond its weights and the process dies. Only a checksum catches
those; so files of known sha256 are compared before they get here, and the others are tried in a
child process first.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

VARIANTS = 300
MOST_CRASHES = 3
_PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "tiny_image.pte"


def survey(script: Path, program: Path, folder: Path) -> tuple[Counter[str], list[str]]:
    """Count what becomes of the variants; a child that dies is followed by one that goes on."""
    outcomes: Counter[str] = Counter()
    notes: list[str] = []
    following = 0
    while following < VARIANTS:
        child = subprocess.run(
            [sys.executable, str(script), str(program), str(folder), str(following), str(VARIANTS)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        lines = child.stdout.split("\n")[:-1]
        outcomes.update(line.split()[1] for line in lines)
        following += len(lines)
        if child.returncode:
            outcomes["crash"] += 1
            notes.append(f"variant {following}: exit code {child.returncode}")
            following += 1
        notes += [line for line in lines if line.endswith("foreign")]
    return outcomes, notes


@pytest.mark.parametrize("path", ["linear_xnnpack.pte", "masked_lookup.pte", str(_PROGRAM)])
def test_a_damaged_program_is_a_typed_error_or_runs_and_hardly_ever_ends_its_child(
    programs: Path, children: Path, tmp_path: Path, path: str
) -> None:
    program = programs / path
    if not program.exists():
        pytest.skip("the embedded model is not built")
    outcomes, notes = survey(children / "corrupt.py", program, tmp_path)
    print(f"\n{program.name}: {dict(outcomes)}")
    assert outcomes.total() == VARIANTS
    assert not outcomes["foreign"], notes
    assert outcomes["crash"] <= MOST_CRASHES, notes
    assert outcomes["error"] > VARIANTS // 4
