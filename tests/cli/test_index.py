"""`aioembed index` and `aioembed search`: a folder of pictures, found again."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aioembed import EmbeddingSpace
from aioembed.cli.index import _line_writer
from aioembed.index import EmbeddingIndex, SyncReport

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


def test_an_unmounted_drive_is_reported_and_keeps_the_index(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    folder = pictures[0].parent
    _index(invoke, folder, index_file)
    for picture in pictures:
        picture.unlink()
    result = invoke("index", folder, "--index", index_file)
    assert result.exit_code == 1
    assert f"3 indexed pictures are not in {folder}" in result.stderr
    assert "--prune" in result.stderr
    assert (
        json.loads(invoke("index", folder, "-i", index_file, "-f", "json").stdout)["removed"] == 0
    )
    result = invoke("index", folder, "--index", index_file, "--prune", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["removed"] == 3


def test_jsonl_tells_how_far_it_is_then_what_failed_and_the_whole(
    run_process: RunProcess, pictures: list[Path], index_file: Path
) -> None:
    broken = pictures[0].with_name("broken.png")
    broken.write_text("no picture")
    done = run_process("index", broken.parent, "--index", index_file, "--format", "jsonl")
    *begun, failed, whole = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert begun[0]["embedded"] == 0
    assert failed["path"] == str(broken)
    assert failed["error"]
    report = SyncReport(**whole)
    assert (report.total, report.embedded, report.failed, report.is_scanning) == (4, 3, 1, False)
    assert all(set(line) == set(whole) for line in begun)


def test_an_index_that_goes_on_writes_few_lines_a_second(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    seconds = 0.0
    write = _line_writer(lambda: seconds)
    for done in range(100):
        write(SyncReport(embedded=done))
        seconds += 0.01
    lines = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(line)["embedded"] for line in lines] == [0, 20, 40, 60, 80]


def test_indexing_ends_when_the_reader_of_its_lines_went_away(
    tmp_path: Path, pictures: list[Path], index_file: Path
) -> None:
    command = [sys.executable, "-m", "aioembed", "index", str(pictures[0].parent)]
    command += ["--index", str(index_file), "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


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
    assert "is not an index" in result.stderr


def test_the_commands_run_as_a_process(run_process: RunProcess, pictures: list[Path]) -> None:
    assert run_process("index", pictures[0].parent).returncode == 0
    done = run_process("search", "-", stdin=pictures[1].read_bytes())
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].endswith(b"picture-1.png")
