"""Damaged images and URIs end in typed errors; `benchmarks/fuzz_images.py` is the long form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_images.py"


@pytest.mark.parametrize(
    ("images", "uris"), [(700, 700), pytest.param(20_000, 20_000, marks=pytest.mark.slow)]
)
def test_mutated_images_and_uris_give_typed_errors_within_bounds(images: int, uris: int) -> None:
    command = [sys.executable, str(_SCRIPT), "--images", str(images), "--uris", str(uris)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{images + uris} cases, 0 untyped" in ended.stdout
