"""The examples that use Ray, as they are documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from .conftest import run_with_ray

pytest.importorskip("ray.data")
dataset = pytest.importorskip("pyarrow.dataset")

_ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_becomes_parquet_files() -> None:
    printed = run_with_ray(_ROOT / "examples" / "ray_dataset.py", "demo")
    assert "200 rows, 1 without a vector" in printed
    assert "ImageDecodeError: " in printed


def test_a_folder_is_named_on_the_command_line(tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "vectors"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 40, 0)).save(folder / f"{number}.png")
    program = _ROOT / "examples" / "ray_dataset.py"
    run_with_ray(program, "embed", folder, output, "--actors", "2")
    rows = dataset.dataset(output).to_table().to_pylist()
    assert sorted(Path(row["path"]).name for row in rows) == ["0.png", "1.png", "2.png"]
    assert {len(row["embedding"]) for row in rows} == {1280}


def test_a_deployment_answers() -> None:
    pytest.importorskip("ray.serve")
    pytest.importorskip("fastapi")
    printed = run_with_ray(_ROOT / "examples" / "ray_serve.py", "demo")
    assert printed.count("a vector of 1280") == 2


def test_the_scaling_is_printed() -> None:
    options = ("--images", "400", "--side", "48", "--rounds", "1")
    printed = run_with_ray(_ROOT / "benchmarks" / "ray_scaling.py", *options)
    assert "1 to 2 actors: x " in printed
