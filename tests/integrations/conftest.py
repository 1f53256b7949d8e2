"""Programs that use Ray, which listens on loopback only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its name for listening on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "40",
    "PYTHONUNBUFFERED": "1",
}
_ATTEMPTS = 4


def run_with_ray(program: Path, *arguments: str | Path) -> str:
    """Run a program to its end and return what it printed.

    Ray gives its own processes some seconds to start, which is too short where much else runs:
    then it is started again.
    """
    for _ in range(_ATTEMPTS):
        done = subprocess.run(
            [sys.executable, program, *arguments],
            env=os.environ | _ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if "timed out during startup" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
