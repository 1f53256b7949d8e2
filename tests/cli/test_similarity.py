"""`aioembed similarity`: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from aioembed.cli.common import base_names, shorten_middle

from .conftest import Invoke


def test_the_table_fits_80_columns_and_has_a_row_per_image(
    invoke: Invoke, pictures: list[Path]
) -> None:
    result = invoke("similarity", *pictures)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 1 + len(pictures)
    assert max(map(len, lines)) <= 80
    for number, (line, path) in enumerate(zip(lines[1:], pictures, strict=True)):
        assert path.name in line
        assert float(line.split()[2 + number]) == pytest.approx(1)


def test_json_and_csv_hold_the_same_symmetric_matrix(invoke: Invoke, pictures: list[Path]) -> None:
    document = json.loads(invoke("similarity", *pictures, "--format", "json").stdout)
    matrix = document["similarities"]
    assert document["inputs"] == [str(path) for path in pictures]
    assert [row[index] for index, row in enumerate(matrix)] == pytest.approx([1, 1, 1])
    assert matrix[0][1] == pytest.approx(matrix[1][0])

    header, *rows = csv.reader(
        io.StringIO(invoke("similarity", *pictures, "--format", "csv").stdout)
    )
    assert header == ["input", *document["inputs"]]
    assert [[float(cell) for cell in row[1:]] for row in rows] == [
        pytest.approx(row) for row in matrix
    ]


def test_a_bad_image_is_left_out(invoke: Invoke, pictures: list[Path], tmp_path: Path) -> None:
    result = invoke("similarity", pictures[0], tmp_path / "missing.png", pictures[1])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    assert "missing.png" in result.stderr


def test_a_table_goes_to_a_file_without_colours(
    invoke: Invoke, pictures: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "table.txt"
    result = invoke("similarity", *pictures, "--output", output)
    assert result.stdout == ""
    assert "\x1b" not in output.read_text()
    assert pictures[0].name in output.read_text()


def test_names_lose_their_folder_unless_they_would_be_ambiguous() -> None:
    assert base_names(["a/one.png", "https://example.org/two.png", "-"]) == [
        "one.png",
        "two.png",
        "-",
    ]
    assert base_names(["a/one.png", "b/one.png"]) == ["a/one.png", "b/one.png"]
    assert base_names(["a/one.png", "a/one.png"]) == ["one.png", "one.png"]


def test_long_names_lose_their_middle() -> None:
    assert shorten_middle("short", 24) == "short"
    assert shorten_middle("a" * 20 + "b" * 20, 12) == "aaaa…bbbbbbb"
