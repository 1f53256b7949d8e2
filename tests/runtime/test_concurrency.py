from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioembed.errors import ModelClosed
from aioembed.runtime import Program


@pytest.fixture
def matrix() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).random((192, 192), dtype=np.float32)


def test_the_gil_is_free_while_a_program_runs(programs: Path, matrix: np.ndarray[Any, Any]) -> None:
    """No thread is made to give up the GIL, so this one gets it only if the run releases it; and
    the run, which needs it back to say that it is done, cannot end before this one waits."""
    program = Program.load(programs / "slow_product.pte")
    running, done = threading.Event(), threading.Event()

    def run() -> None:
        running.set()
        program.run(matrix)
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        runner = threading.Thread(target=run)
        runner.start()
        running.wait()
        beats = 0
        while not done.is_set() and beats < 1000:
            beats += 1
        runner.join()
    finally:
        sys.setswitchinterval(interval)
    assert beats == 1000


def test_runs_from_eight_threads_are_all_right(programs: Path) -> None:
    program = Program.load(programs / "add.pte")

    def total(number: int) -> bool:
        a = np.full((2, 3), number, np.float32)
        return bool((program.run(a, a + 1)[0] == 2 * number + 1).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(total, range(400)))


def test_programs_run_beside_each_other(programs: Path, matrix: np.ndarray[Any, Any]) -> None:
    path = programs / "slow_product.pte"
    several = [Program.load(path, threads=1), Program.load(path, threads=1), Program.load(path)]
    expected = several[0].run(matrix)[0]
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda program: program.run(matrix)[0], several * 3)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_closing_waits_for_the_run_in_flight(programs: Path, matrix: np.ndarray[Any, Any]) -> None:
    program = Program.load(programs / "slow_product.pte")
    (expected,) = program.run(matrix)
    started = threading.Barrier(5)

    def run() -> bool:
        started.wait()
        try:
            return np.array_equal(program.run(matrix)[0], expected)
        except ModelClosed:
            return True

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run) for _ in range(4)]
        started.wait()
        program.close()
        assert all(running.result() for running in runs)
    with pytest.raises(ModelClosed):
        program.run(matrix)


def test_programs_are_loaded_and_closed_from_many_threads(programs: Path) -> None:
    batch = np.ones((1, 8), np.float32)

    def round_trip(_: int) -> float:
        program = Program.load(programs / "linear_xnnpack.pte")
        (result,) = program.run(batch)
        program.close()
        return float(result.sum())

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(round_trip, range(80)))) == 1
