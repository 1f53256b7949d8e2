from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aioembed.errors import ExecutorchError, InvalidProgram, ModelClosed
from aioembed.runtime import Program

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_THREADS = """
import os, sys
import numpy as np
from aioembed.runtime import Program, set_thread_count

own = os.getpriority(os.PRIO_PROCESS, 0)
before = set(os.listdir("/proc/self/task"))
set_thread_count(3)

def levels():
    new = set(os.listdir("/proc/self/task")) - before
    return sorted(os.getpriority(os.PRIO_PROCESS, int(thread)) - own for thread in new)
"""

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="niceness is the process's elsewhere"
)


@needs_linux
def test_inference_threads_are_nicer_than_the_caller(programs: Path, run_code: Run) -> None:
    code = """
program = Program.load(sys.argv[1])
program.run(np.ones((1, 8), np.float32))
print(levels(), os.getpriority(os.PRIO_PROCESS, 0) - own)
program.close()
print(levels())
"""
    printed = run_code(_THREADS + code, programs / "linear_xnnpack.pte").stdout.splitlines()
    assert printed == ["[1, 1, 1] 0", "[1, 1]"]  # the program's thread and the pool's


@needs_linux
def test_the_lowest_priority_cannot_be_lowered(programs: Path, run_code: Run) -> None:
    code = """
os.setpriority(os.PRIO_PROCESS, 0, max(own, 19))
program = Program.load(sys.argv[1], threads=1)
program.run(np.ones((1, 8), np.float32))
print([level + own for level in levels()])
"""
    printed = run_code(_THREADS + code, programs / "linear_xnnpack.pte").stdout.strip()
    assert printed == "[19]"


def test_a_program_with_its_own_thread_computes_the_same(programs: Path) -> None:
    batch = np.random.default_rng(3).random((1, 8), dtype=np.float32)
    path = programs / "linear_xnnpack.pte"
    (expected,) = Program.load(path, threads=1).run(batch)
    for threads in (1, None):
        program = Program.load(path, threads=threads)
        np.testing.assert_array_equal(program.run(batch)[0], expected)


def test_errors_cross_from_the_programs_thread_to_the_caller(
    programs: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.pte"
    content = bytearray((programs / "add.pte").read_bytes())
    content[8:200] = bytes(192)
    damaged.write_bytes(content)
    with pytest.raises(InvalidProgram):
        Program.load(damaged)
    program = Program.load(programs / "lookup.pte")
    with pytest.raises(ExecutorchError):
        program.run(np.full((1, 4), 1000, np.int64))
    program.close()
    with pytest.raises(ModelClosed):
        program.run(np.zeros((1, 4), np.int64))


@needs_linux
def test_a_forked_child_releases_a_thread_that_stayed_behind(programs: Path, run_code: Run) -> None:
    code = """
import os, sys
import numpy as np
from aioembed.runtime import Program

ones = np.ones((1, 8), np.float32)
program = Program.load(sys.argv[1])
expected = program.run(ones)[0]
child = os.fork()
if child == 0:
    program.close()
    del program
    same = (Program.load(sys.argv[1]).run(ones)[0] == expected).all()
    os._exit(0 if same else 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (program.run(ones)[0] == expected).all()
"""
    run_code(code, programs / "linear_xnnpack.pte")
