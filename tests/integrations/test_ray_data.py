"""Ray Data on two CPUs of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import run_with_ray

pytest.importorskip("ray")
pytest.importorskip("pyarrow")

_PROGRAM = Path(__file__).with_name("ray_program.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program printed; it runs once."""
    printed = run_with_ray(_PROGRAM, tmp_path_factory.mktemp("ray"))
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def test_the_vectors_are_the_local_ones(found: dict[str, Any]) -> None:
    assert found["plain"].pop("difference") <= 1e-6
    assert found["plain"] == {"numbers": True, "errors": 0}


def test_an_actor_that_is_killed_loses_nothing_and_doubles_nothing(found: dict[str, Any]) -> None:
    assert found["killed"].pop("difference") <= 1e-6
    assert found["killed"] == {"numbers": True, "errors": 0, "killed": True}


def test_an_actor_computes_and_decodes_on_as_many_threads_as_it_has_cpus(
    found: dict[str, Any],
) -> None:
    assert found["one_cpu"][:2] == [1, 1]
    assert found["two_cpus"] == [2, 2, 2, True]


def test_a_process_that_is_not_an_actor_keeps_the_defaults(found: dict[str, Any]) -> None:
    assert found["driver_has_no_cpus"] is None


def test_rows_that_fail_have_their_errors_in_a_column(found: dict[str, Any]) -> None:
    assert len(found["broken_rows"]) == 3
    assert all(": " in error for error in found["broken_rows"])


def test_a_model_that_cannot_be_loaded_ends_the_job(found: dict[str, Any]) -> None:
    assert found["missing_model"]


def test_no_process_is_left(found: dict[str, Any]) -> None:
    commands = [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    assert not [command for command in commands if found["session"] in command]
