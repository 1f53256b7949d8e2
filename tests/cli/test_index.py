"""`aioembed index` and `aioembed search`: a folder of pictures, found again."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from aioembed import EmbeddingSpace
from aioembed.cli.index import _line_writer
from aioembed.index import EmbeddingIndex, SyncReport, database

from ..programs import TINY_IMAGE_PROGRAM
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


def test_json_and_csv_agree(invoke: Invoke, pictures: list[Path], index_file: Path) -> None:
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
    assert f"3 indexed pictures are no longer in {folder}" in result.stderr
    assert "--prune" in result.stderr
    assert (
        json.loads(invoke("index", folder, "-i", index_file, "-f", "json").stdout)["removed"] == 0
    )
    result = invoke("index", folder, "--index", index_file, "--prune", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["removed"] == 3


def test_jsonl_reports_progress_then_failures_then_the_result(
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


def test_progress_is_at_most_a_few_lines_a_second(
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


def test_a_missing_index_or_folder_is_reported(
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
    anyio.run(_make_index, index_file)
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


def test_search_needs_no_model_and_shows_paths_from_here(
    invoke: Invoke, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own index remembers the model; nothing is embedded for an indexed picture."""
    folder = pictures[0].parent
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.chdir(folder.parent)
    assert invoke("index", folder, "--model", TINY_IMAGE_PROGRAM).exit_code == 0
    result = invoke("search", pictures[1], "--format", "paths", "-k", 1)
    assert result.stdout == f"{folder.name}/picture-1.png\n"
    result = invoke("search", pictures[1], "--format", "paths", "-0", "--min-similarity", 0.9999)
    assert result.stdout == f"{folder.name}/picture-1.png\0"
    info = json.loads(invoke("index", "--info", "--format", "json").stdout)
    assert info["pictures"] == 3
    assert info["folders"] == [str(folder)]
    result = invoke("search", pictures[0], "--model", "efficientnet-lite0")
    assert result.exit_code == 7
    assert "efficientnet-lite0" in result.stderr


def test_words_without_a_text_model_are_explained(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    _index(invoke, pictures[0].parent, index_file)
    result = invoke("search", "a cat on a sofa", "--index", index_file)
    assert result.exit_code == 1
    assert "no text model" in result.stderr
    for missing in ("missing.png", "missing.avif", "missing.HEIC"):
        result = invoke("search", missing, "--index", index_file)
        assert "no such file" in result.stderr


def test_folders_are_forgotten_and_all_are_brought_up_to_date(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    folder = pictures[0].parent
    for number, picture in enumerate(pictures[:2]):
        (folder / f"{number}").mkdir()
        picture.rename(folder / f"{number}" / picture.name)
        _index(invoke, folder / f"{number}", index_file)
    both = json.loads(invoke("index", "-i", index_file, "-f", "json").stdout)
    assert both["unchanged"] == 2
    (folder / "0").rename(folder / "2")
    result = invoke("index", folder / "0", "-i", index_file)
    assert result.exit_code == 1
    assert f"--forget {folder / '0'}" in result.stderr
    assert invoke("index", folder / "0", "--forget", "-i", index_file).exit_code == 0
    assert invoke("index", "-i", index_file, "-f", "json").exit_code == 0
    assert invoke("index", "--forget", "-i", index_file).exit_code == 2


def test_duplicates_are_shown_in_groups(
    invoke: Invoke, pictures: list[Path], index_file: Path
) -> None:
    folder = pictures[0].parent
    (folder / "copy.png").write_bytes(pictures[0].read_bytes())
    _index(invoke, folder, index_file)
    result = invoke("duplicates", folder, "-i", index_file, "--above", 0.9999, "-f", "paths")
    assert [Path(line).name for line in result.stdout.splitlines()] == ["copy.png", "picture-0.png"]
    table = invoke("duplicates", folder, "-i", index_file, "--above", 0.9999).stdout
    assert table.endswith("1 groups of 2 pictures\n")
    result = invoke("duplicates", folder / "none", "-i", index_file)
    assert result.exit_code == 1
    assert "aioembed index" in result.stderr


def _picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)


def _folder(path: Path) -> None:
    path.mkdir()


def _other_database(path: Path) -> None:
    _execute(path, "CREATE TABLE invoices (number)")


def _damaged(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


def _newer_version(path: Path) -> None:
    anyio.run(_make_index, path)
    _execute(path, "PRAGMA user_version = 99")


async def _make_index(path: Path) -> None:
    async with EmbeddingIndex(path, space=EmbeddingSpace(base="0" * 16)) as index:
        await index.add("x", [1.0] * 512)


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_picture, "is not an index"),
        (_folder, "album.db"),
        (_other_database, "of something else"),
        (_damaged, "is not an index"),
        (_newer_version, "version 99"),
    ],
)
def test_a_file_that_is_not_an_index_is_reported_and_unchanged(
    invoke: Invoke,
    picture: Path,
    index_file: Path,
    make: Callable[[Path], object],
    words: str,
) -> None:
    make(index_file)
    for arguments in (("search", picture), ("index", picture.parent), ("index", "--info")):
        result = invoke(*arguments, "--index", index_file)
        assert result.exit_code == 7
        assert words in result.stderr
        assert "delete" not in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert index_file.exists()


def test_an_index_that_another_process_writes_is_reported_on_one_line(
    invoke: Invoke, picture: Path, index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.001)
    _index(invoke, picture.parent, index_file)
    with closing(sqlite3.connect(index_file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        (picture.parent / "new.png").write_bytes(picture.read_bytes())
        result = invoke("index", picture.parent, "--index", index_file)
        assert result.exit_code == 7
        assert "another process" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert invoke("search", picture, "--index", index_file).exit_code == 0


def test_a_folder_that_is_a_file_is_reported_on_one_line(
    invoke: Invoke, picture: Path, index_file: Path
) -> None:
    result = invoke("index", picture, "--index", index_file)
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_results_fit_a_narrow_terminal(
    invoke: Invoke, pictures: list[Path], index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the paths is wider than 40 columns, and those are not cut off."""
    folder = pictures[0].parent
    (folder / ("long-" * 12 + ".png")).write_bytes(pictures[0].read_bytes())
    _index(invoke, folder, index_file)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "40")
    lines = invoke("search", pictures[0], "--index", index_file).stdout.splitlines()
    assert len(lines) == 5
    assert "long-" * 12 + ".png" in "".join(lines)
    assert all(len(line) <= 40 for line in lines if "long-" not in line)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (SyncReport(), "before anything"),
        (
            SyncReport(total=2000, embedded=1200, is_scanning=False),
            "1,200 of 2,000 pictures are indexed and kept",
        ),
    ],
)
def test_an_interrupted_index_says_what_is_kept(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    report: SyncReport,
    said: str,
) -> None:
    async def interrupted(
        *_arguments: object, on_progress: Callable[[SyncReport], object], **_options: object
    ) -> SyncReport:
        on_progress(report)
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddingIndex, "sync", interrupted)
    result = invoke("index", tmp_path, "--index", tmp_path / "album.db")
    assert result.exit_code == 130
    assert said in result.stderr
