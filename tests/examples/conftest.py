"""The examples as modules and as programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # they import each other so


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of examples whose libraries know only asyncio."""
    return "asyncio"


def start(example: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start an example; its warnings are errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", EXAMPLES / example, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def run(example: str, *arguments: str | Path) -> str:
    """Run an example to its end and return what it printed."""
    with start(example, *arguments) as process:
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return printed
