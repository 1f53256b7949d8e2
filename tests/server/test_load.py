"""The short form of the load that `benchmarks/server_load.py` puts on a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LOAD = Path(__file__).resolve().parents[2] / "benchmarks" / "server_load.py"


def test_everything_is_answered_and_given_back_under_a_mixed_load() -> None:
    """No 500, no connection without an answer, no file or task left, exit code 0."""
    pytest.importorskip("psutil")
    command = [sys.executable, str(LOAD), "--seconds", "6", "--connections", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 or unanswered: none" in done.stdout
