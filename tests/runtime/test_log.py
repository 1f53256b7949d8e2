from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aioembed.errors import ExecutorchError
from aioembed.runtime import Program

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_runtimes_log_goes_to_logging(programs: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = Program.load(programs / "lookup.pte")
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "aioembed.runtime"), pytest.raises(ExecutorchError):
        program.run(np.full((1, 4), 99))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {record.name for record in errors} == {"aioembed.runtime"}
    assert "weight_height" in errors[0].message


def test_nothing_reaches_stderr_where_logging_is_not_set_up(programs: Path, run_code: Run) -> None:
    code = """
import sys
import numpy as np
from aioembed.errors import ExecutorchError
from aioembed.runtime import Program

program = Program.load(sys.argv[1])
try:
    program.run(np.full((1, 4), 99))
except ExecutorchError:
    print("refused")
"""
    done = run_code(code, programs / "lookup.pte")
    assert (done.stdout, done.stderr) == ("refused\n", "")
