"""The examples that use Ray, as they are documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import run_with_ray

pytest.importorskip("ray.data")
pytest.importorskip("pyarrow")

_ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_becomes_parquet_files() -> None:
    printed = run_with_ray(_ROOT / "examples" / "ray_dataset.py", "demo")
    assert "200 rows, 1 without a vector" in printed
    assert "ImageDecodeError: " in printed


def test_a_deployment_answers() -> None:
    pytest.importorskip("ray.serve")
    pytest.importorskip("fastapi")
    printed = run_with_ray(_ROOT / "examples" / "ray_serve.py", "demo")
    assert printed.count("a vector of 1280") == 2


def test_the_scaling_is_printed() -> None:
    options = ("--images", "400", "--side", "48", "--rounds", "1")
    printed = run_with_ray(_ROOT / "benchmarks" / "ray_scaling.py", *options)
    assert "1 to 2 actors: x " in printed
