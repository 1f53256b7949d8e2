"""`aioembed index` and `aioembed search`: a folder of pictures, found again."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("apsw")
pytest.importorskip("sqlite_vec")

from aioembed import EmbeddingSpace
from aioembed.index import EmbeddingIndex

from .conftest import Invoke, RunProcess


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    return tmp_path / "album.db"


def _index(invoke: Invoke, folder: Path, file: Path) -> dict[str, object]:
    result = invoke("index", folder, "--index", file, "--format", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_a_folder_is_indexed_and_a_picture_found(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    first = _index(invoke, pictures[0].parent, index_file)
    assert (first["embedded"], first["unchanged"], first["errors"]) == (3, 0, {})
    again = _index(invoke, pictures[0].parent, index_file)
    assert (again["embedded"], again["unchanged"]) == (0, 3)

    result = invoke("search", pictures[1], "--index", index_file)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 4
    assert lines[1].startswith("1.000")
    assert lines[1].endswith("picture-1.png")


def test_json_and_csv_tell_the_same(invoke: Invoke, pictures: list[Path], index_file: Path) -> None:
    _index(invoke, pictures[0].parent, index_file)
    arguments = ("search", pictures[2], "--index", index_file, "-k", 2)
    hits = json.loads(invoke(*arguments, "--format", "json").stdout)
    header, *rows = csv.reader(io.StringIO(invoke(*arguments, "--format", "csv").stdout))
    assert [hit["key"] for hit in hits] == [row[0] for row in rows]
    assert hits[0]["key"] == str(pictures[2])
    assert header == ["key", "similarity"]
    assert float(rows[0][1]) == pytest.approx(1, abs=1e-5)


def test_a_picture_that_fails_is_named_and_the_others_are_indexed(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    broken = pictures[0].with_name("broken.png")
    broken.write_text("no picture")
    result = invoke("index", broken.parent, "--index", index_file)
    assert result.exit_code == 1
    assert str(broken) in result.stderr
    assert ["embedded", "3"] in [line.split() for line in result.stdout.splitlines()]


def test_a_missing_index_or_folder_is_said(
    invoke: Invoke, picture: Path, index_file: Path, tmp_path: Path
) -> None:
    result = invoke("search", picture, "--index", index_file)
    assert (result.exit_code, result.stdout) == (7, "")
    assert "index DIR" in result.stderr
    assert not index_file.exists()
    result = invoke("index", tmp_path / "nowhere", "--index", index_file)
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_an_index_of_another_model_or_a_damaged_one_is_refused(
    invoke: Invoke, picture: Path, index_file: Path
) -> None:
    import anyio

    async def make() -> None:
        async with EmbeddingIndex(index_file, space=EmbeddingSpace(base="0" * 16)) as index:
            await index.add("x", [1.0] * 512)

    anyio.run(make)
    for arguments in (("search", picture), ("index", picture.parent)):
        result = invoke(*arguments, "--index", index_file)
        assert result.exit_code == 7
        assert "space" in result.stderr
    index_file.write_bytes(os.urandom(5000))
    result = invoke("search", picture, "--index", index_file)
    assert result.exit_code == 7
    assert "damaged" in result.stderr


def test_the_commands_run_as_a_process(run_process: RunProcess, pictures: list[Path]) -> None:
    assert run_process("index", pictures[0].parent).returncode == 0
    done = run_process("search", "-", stdin=pictures[1].read_bytes())
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].endswith(b"picture-1.png")
