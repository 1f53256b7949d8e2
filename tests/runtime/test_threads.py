from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aioembed.errors import InvalidConfig
from aioembed.runtime import _threads, set_thread_count, thread_count

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(InvalidConfig, match="from 1 to 256"):
        set_thread_count(count)


def test_only_one_thread_or_the_shared_pool_can_be_had() -> None:
    assert _threads.wants_single_thread(1)
    assert not _threads.wants_single_thread(None)
    with pytest.raises(InvalidConfig, match="not on 200"):
        _threads.wants_single_thread(200)
    assert thread_count() >= 1


def test_the_count_is_settable_until_the_first_load(programs: Path, run_code: Run) -> None:
    code = """
import sys
from aioembed.errors import InvalidConfig
from aioembed.runtime import Program, set_thread_count, thread_count

set_thread_count(5)
set_thread_count(3)
assert thread_count() == 3
Program.load(sys.argv[1], threads=1)
set_thread_count(4)
Program.load(sys.argv[1], threads=4)
set_thread_count(4)
try:
    set_thread_count(3)
except InvalidConfig as error:
    print(error)
print(thread_count())
"""
    printed = run_code(code, programs / "linear_xnnpack.pte").stdout.splitlines()
    assert "set the count before the first load" in printed[0]
    assert printed[1] == "4"


def test_a_program_has_one_thread_and_the_pool_has_the_others(
    programs: Path, run_code: Run
) -> None:
    code = """
import sys
import numpy as np, psutil
from aioembed.runtime import Program, set_thread_count

set_thread_count(6)
process = psutil.Process()
before = process.num_threads()
alone = Program.load(sys.argv[1], threads=1)
alone.run(np.ones((1, 8), np.float32))
print(process.num_threads() - before)
Program.load(sys.argv[1])
print(process.num_threads() - before)
"""
    printed = run_code(code, programs / "linear_xnnpack.pte").stdout.split()
    assert printed == ["1", "6"]  # the second program is freed immediately, and its thread ended


def test_a_forked_child_has_to_load_again_and_can(programs: Path, run_code: Run) -> None:
    code = """
import os, sys
import numpy as np
from aioembed.errors import InvalidConfig
from aioembed.runtime import Program

ones = np.ones((1, 8), np.float32)
program = Program.load(sys.argv[1])
expected = program.run(ones)[0]
child = os.fork()
if child == 0:
    try:
        program.run(ones)
    except InvalidConfig:
        same = (Program.load(sys.argv[1]).run(ones)[0] == expected).all()
        os._exit(0 if same else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_code(code, programs / "linear_xnnpack.pte")
