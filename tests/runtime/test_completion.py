"""Runs without a waiting thread: `start`, `completion_fd`, `collect`."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed.errors import (
    ExecutorchError,
    InvalidConfig,
    ModelClosed,
    ProgramLost,
    UnexpectedNumInputs,
    WrongDimensions,
)
from aioembed.runtime import Program

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Matrix = np.ndarray[Any, Any]

_TAG_OF_A_BOOL = 392  # in lookup.pte; changed to another type's, a check inside a kernel fails


@pytest.fixture
def matrix() -> Matrix:
    return np.random.default_rng(5).random((192, 192), dtype=np.float32)


@pytest.fixture
def slow(programs: Path) -> Program:
    """A program whose run takes 100 ms or more."""
    return Program.load(programs / "slow_product.pte")


@pytest.fixture
def adder(programs: Path) -> Program:
    return Program.load(programs / "add.pte")


def pair(first: float, second: float) -> tuple[Matrix, Matrix]:
    return np.full((2, 3), first, np.float32), np.full((2, 3), second, np.float32)


def is_readable(program: Program) -> bool:
    return bool(select.select([program.completion_fd], [], [], 0)[0])


def wait(program: Program) -> None:
    assert select.select([program.completion_fd], [], [], 60)[0]


@pytest.mark.anyio
async def test_a_loop_awaits_the_result(slow: Program, matrix: Matrix) -> None:
    (expected,) = slow.run(matrix)
    for _ in range(2):
        slow.start(matrix)
        assert not is_readable(slow)
        await anyio.wait_readable(slow.completion_fd)
        np.testing.assert_array_equal(slow.collect()[0], expected)
        assert not is_readable(slow)


def test_the_programs_thread_never_takes_the_gil(slow: Program, matrix: Matrix) -> None:
    """This thread keeps the GIL until the descriptor is readable."""

    class Poll(ctypes.Structure):
        _fields_ = (
            ("fd", ctypes.c_int),
            ("events", ctypes.c_short),
            ("revents", ctypes.c_short),
        )

    slow.start(matrix)
    waited = Poll(slow.completion_fd, select.POLLIN, 0)
    assert ctypes.PyDLL(None).poll(ctypes.byref(waited), ctypes.c_ulong(1), 60_000) == 1
    assert slow.collect()[0].shape == (192, 192)


def test_collect_waits_for_a_run_that_has_not_ended(slow: Program, matrix: Matrix) -> None:
    (expected,) = slow.run(matrix)
    slow.start(matrix)
    np.testing.assert_array_equal(slow.collect()[0], expected)


def test_a_result_is_collected_once(adder: Program) -> None:
    with pytest.raises(InvalidConfig, match="call start"):
        adder.collect()
    adder.start(*pair(1, 2))
    assert (adder.collect()[0] == 3).all()
    with pytest.raises(InvalidConfig, match="call start"):
        adder.collect()


def test_inputs_are_kept_until_the_run_has_ended_and_no_longer(slow: Program) -> None:
    class Owned(np.ndarray[Any, Any]):
        """Can be referred to weakly."""

    (expected,) = slow.run(np.full((192, 192), 2, np.float32))
    array = np.full((192, 192), 2, np.float32).view(Owned)
    kept = weakref.ref(array)
    slow.start(array)
    del array
    assert kept() is not None
    np.testing.assert_array_equal(slow.collect()[0], expected)
    assert kept() is None


def test_another_start_replaces_a_result_that_was_not_collected(
    slow: Program, matrix: Matrix
) -> None:
    (expected,) = slow.run(matrix)
    slow.start(matrix)
    wait(slow)
    for _ in range(5):  # one of them is being computed, and the others never are
        slow.start(matrix * 2)
    slow.start(matrix)
    assert not is_readable(slow)
    wait(slow)
    np.testing.assert_array_equal(slow.collect()[0], expected)
    with pytest.raises(InvalidConfig):
        slow.collect()


def test_run_and_start_do_not_affect_each_other(adder: Program) -> None:
    for number in range(200):
        adder.start(*pair(number, 1))
        assert (adder.run(*pair(number, 2))[0] == number + 2).all()
        assert (adder.collect()[0] == number + 1).all()


def test_what_a_run_raises_is_raised_when_it_is_collected(programs: Path) -> None:
    program = Program.load(programs / "lookup.pte")
    program.start(np.full((1, 4), 99))
    wait(program)
    with pytest.raises(ExecutorchError, match=r"InvalidArgument \(18\)") as info:
        program.collect()
    assert not isinstance(info.value, ProgramLost)
    program.start(np.full((1, 4), 2))
    assert program.collect()[0].tolist() == [[[4, 5]] * 4]


def test_wrong_inputs_are_refused_before_anything_is_started(adder: Program) -> None:
    with pytest.raises(UnexpectedNumInputs):
        adder.start()
    with pytest.raises(WrongDimensions):
        adder.start(np.ones(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(InvalidConfig, match="no method"):
        adder.start(*pair(1, 1), method="other")
    with pytest.raises(InvalidConfig, match="call start"):
        adder.collect()


def test_closing_waits_for_the_run_in_progress_and_ends_what_is_queued(
    slow: Program, matrix: Matrix
) -> None:
    (expected,) = slow.run(matrix)
    slow.start(matrix)
    slow.start(matrix)
    slow.close()
    assert is_readable(slow)
    try:
        (result,) = slow.collect()
    except ModelClosed:
        pass
    else:
        np.testing.assert_array_equal(result, expected)
    with pytest.raises(ModelClosed):
        slow.start(matrix)


def test_the_descriptor_is_open_for_as_long_as_the_program_exists(programs: Path) -> None:
    program = Program.load(programs / "add.pte")
    descriptor = program.completion_fd
    assert not os.get_inheritable(descriptor)
    program.close()
    assert program.completion_fd == descriptor
    os.fstat(descriptor)
    del program
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


@pytest.mark.anyio
async def test_a_task_that_waits_is_woken_when_the_program_is_closed(
    slow: Program, matrix: Matrix
) -> None:
    async def wait_readable() -> None:
        await anyio.wait_readable(slow.completion_fd)

    async with anyio.create_task_group() as tasks:
        slow.start(matrix)
        tasks.start_soon(wait_readable)
        await anyio.to_thread.run_sync(slow.close)


def test_a_result_of_a_loop_that_has_ended_is_dropped(slow: Program, matrix: Matrix) -> None:
    (expected,) = slow.run(matrix)

    async def begin() -> None:
        slow.start(matrix * 2)

    async def complete() -> Matrix:
        slow.start(matrix)
        await anyio.wait_readable(slow.completion_fd)
        return slow.collect()[0]

    anyio.run(begin)
    np.testing.assert_array_equal(anyio.run(complete), expected)


@pytest.fixture
def damaged(programs: Path, tmp_path: Path) -> Path:
    """A program that loads well, and in whose run a check of the runtime fails."""
    content = bytearray((programs / "lookup.pte").read_bytes())
    content[_TAG_OF_A_BOOL] = 1
    path = tmp_path / "damaged.pte"
    path.write_bytes(content)
    return path


def test_a_program_that_the_runtime_drops_says_so_until_it_is_loaded_again(damaged: Path) -> None:
    program = Program.load(damaged)
    ids = np.zeros((1, 4), np.int64)
    for _ in range(2):
        with pytest.raises(ProgramLost, match=r"InvalidProgram \(35\); load the program again"):
            program.run(ids)
    program.start(ids)
    with pytest.raises(ProgramLost) as info:
        program.collect()
    assert (info.value.code, info.value.name) == (35, "InvalidProgram")
    program.close()
    with pytest.raises(ModelClosed):
        program.start(ids)


def test_no_descriptor_left_is_a_typed_error(programs: Path, run_code: Run) -> None:
    code = """
import os, resource, sys
from aioembed.errors import ExecutorchError
from aioembed.runtime import Program

held = os.open(sys.argv[1], os.O_RDONLY)
path = f"/proc/self/fd/{held}"
Program.load(sys.argv[1], threads=1)
resource.setrlimit(resource.RLIMIT_NOFILE, (held + 2, held + 2))
kept = []
try:
    for _ in range(3):
        kept.append(Program.load(sys.argv[1], threads=1))
except Exception as error:
    print(type(error).__name__, error)
"""
    printed = run_code(code, programs / "add.pte").stdout
    assert "Too many open files" in printed
    assert printed.startswith(("ExecutorchError", "ModelFileUnreadable"))


_BEGUN = """
import os, signal, sys, time
import anyio
import numpy as np
from aioembed.errors import InvalidConfig, ModelClosed
from aioembed.runtime import Program

matrix = np.random.default_rng(5).random((192, 192), dtype=np.float32)
program = Program.load(sys.argv[1])
"""


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit()",
        "program.close()",
        "del program",
        "program.self = program",  # a cycle that is collected after everything else, if at all
        "kept = [program.start, program.collect]; sys.kept = kept",
        "import atexit; atexit.register(program.close)",
    ],
)
def test_the_interpreter_exits_quietly_in_mid_run(
    programs: Path, run_code: Run, ending: str
) -> None:
    code = f"{_BEGUN}\nprogram.start(matrix)\ntime.sleep(0.02)\n{ending}"
    done = run_code(code, programs / "slow_product.pte")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_in_mid_run_ends_the_program_cleanly(programs: Path, backend: str) -> None:
    code = f"""{_BEGUN}
async def main():
    program.start(matrix)
    os.kill(os.getpid(), signal.SIGINT)
    await anyio.wait_readable(program.completion_fd)

try:
    anyio.run(main, backend={backend!r})
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(programs / "slow_product.pte")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_an_unhandled_ctrl_c_ends_the_process_by_the_signal(programs: Path) -> None:
    code = f"{_BEGUN}\nprogram.start(matrix)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(programs / "slow_product.pte")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "nanobind" not in done.stderr


def test_a_process_forked_in_mid_run_neither_hangs_nor_affects_its_parent(
    programs: Path, run_code: Run
) -> None:
    code = f"""{_BEGUN}
(expected,) = program.run(matrix)
for _ in range(10):
    program.start(matrix)
    child = os.fork()
    if child == 0:
        for call in (program.collect, lambda: program.start(matrix), lambda: program.completion_fd):
            try:
                call()
            except InvalidConfig:
                continue
            os._exit(1)
        program.close()
        again = Program.load(sys.argv[1])  # on one thread: those of the pool stayed behind
        same = (again.run(matrix)[0] == expected).all()
        sys.exit(0 if same else 2)  # the exit hooks run, too
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (program.collect()[0] == expected).all()
"""
    done = run_code(code, programs / "slow_product.pte")
    assert done.stderr == ""
