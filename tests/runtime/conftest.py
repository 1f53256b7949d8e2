"""Tiny programs, and children to run them in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parent
_PROGRAMS = _FOLDER / "programs"


@pytest.fixture(scope="session")
def programs() -> Path:
    """Folder of the tiny programs that `programs/build.py` makes."""
    return _PROGRAMS


@pytest.fixture(scope="session")
def children() -> Path:
    """Folder of the scripts that tests run in child processes."""
    return _FOLDER / "children"


@pytest.fixture
def run_code() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a child process that must end well, and return what it printed."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run
