"""Index files that are locked, damaged, of something else, or cannot be there."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioembed.errors import IndexDamaged, IndexFileError, IndexLocked
from aioembed.index import EmbeddingIndex, database, default_index_path

from .conftest import SPACE

pytestmark = pytest.mark.anyio


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Let a folder be on a read-only file system; for root permissions are not enough."""
    if os.geteuid():
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    if subprocess.run(["mount", "--bind", folder, folder], check=False).returncode:
        pytest.skip("root may write everywhere, and nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_writer_that_does_not_end_is_reported_and_readers_read_on(
    index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.001)
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
        writer = sqlite3.connect(index_file, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(IndexLocked, match="another process"):
            await index.add("y", [1, 0])
        async with EmbeddingIndex(index_file) as reader:
            assert [hit.key for hit in await reader.search([1, 0])] == ["x"]
        writer.execute("ROLLBACK")
        writer.close()
        await index.add("y", [1, 0])
        assert await index.count() == 2


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_not_a_database_is_refused_unchanged(
    index_file: Path, content: bytes
) -> None:
    _write(index_file, content)
    with pytest.raises(IndexDamaged, match=r"not an index|damaged"):
        async with EmbeddingIndex(index_file):
            raise AssertionError("it was opened")
    assert _read(index_file) == content


async def test_the_database_of_something_else_is_refused_unchanged(index_file: Path) -> None:
    _execute(index_file, "CREATE TABLE invoices (number)")
    content = _read(index_file)
    with pytest.raises(IndexDamaged, match="something else"):
        async with EmbeddingIndex(index_file):
            raise AssertionError("it was opened")
    assert _read(index_file) == content


async def test_an_index_of_a_later_version_is_refused(index_file: Path) -> None:
    async with EmbeddingIndex(index_file):
        pass
    _execute(index_file, "PRAGMA user_version = 99")
    with pytest.raises(IndexDamaged, match="version 99"):
        async with EmbeddingIndex(index_file):
            raise AssertionError("it was opened")


async def test_damage_within_the_file_is_a_typed_error(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many((str(number), [1.0, number]) for number in range(3000))
    content = _read(index_file)
    _write(index_file, content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(IndexDamaged, match="index into another file"):
        async with EmbeddingIndex(index_file) as index:
            await index.search([1, 0])


async def test_a_path_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "index.db", tmp_path):
        with pytest.raises(IndexFileError, match=path.name):
            async with EmbeddingIndex(path):
                raise AssertionError("it was opened")


async def test_an_index_that_cannot_be_written_is_searched(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
    with _read_only(index_file.parent):
        async with EmbeddingIndex(index_file) as index:
            assert [hit.key for hit in await index.search([1, 0])] == ["x"]
            with pytest.raises(IndexFileError, match="only be searched"):
                await index.add("y", [0, 1])


async def test_nothing_but_the_file_is_left_beside_it(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
        await index.search([1, 0])
    assert [path.name for path in sorted(index_file.parent.iterdir())] == [index_file.name]


async def test_without_a_name_the_index_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with EmbeddingIndex(space=SPACE) as index:
        await index.add("x", [1, 0])
        assert index.path == default_index_path()
    assert default_index_path().is_file()
