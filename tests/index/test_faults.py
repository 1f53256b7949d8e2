"""Index files that are locked, damaged, of something else, or cannot be there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest
import sqlite_vec

from aioembed.errors import IndexDamaged, IndexFileError, IndexLocked, MissingExtra
from aioembed.index import EmbeddingIndex, database

from .conftest import SPACE

pytestmark = pytest.mark.anyio


def _execute(path: Path, statement: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.close()


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def test_a_writer_that_does_not_end_is_reported_and_readers_read_on(
    index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_MILLISECONDS", 1)
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
        writer = apsw.Connection(str(index_file))
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
async def test_a_file_that_is_no_database_is_refused_unchanged(
    index_file: Path, content: bytes
) -> None:
    _write(index_file, content)
    with pytest.raises(IndexDamaged, match="damaged or no index"):
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
    _execute(index_file, "PRAGMA user_version = 2")
    with pytest.raises(IndexDamaged, match="version 2"):
        async with EmbeddingIndex(index_file):
            raise AssertionError("it was opened")


async def test_damage_within_the_file_is_a_typed_error(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many((str(number), [1.0, number]) for number in range(3000))
    content = _read(index_file)
    _write(index_file, content[:4096] + b"\xa5" * (len(content) - 4096))
    with pytest.raises(IndexDamaged, match="index anew"):
        async with EmbeddingIndex(index_file) as index:
            await index.search([1, 0])


async def test_a_path_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "index.db", tmp_path):
        with pytest.raises(IndexFileError, match=path.name):
            async with EmbeddingIndex(path):
                raise AssertionError("it was opened")


async def test_an_sqlite_that_loads_no_extensions_is_named(
    index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_vec, "loadable_path", lambda: "/nowhere/vec0")
    with pytest.raises(MissingExtra, match="search"):
        async with EmbeddingIndex(index_file):
            raise AssertionError("it was opened")


@pytest.mark.parametrize("package", ["apsw", "sqlite_vec"])
def test_without_the_extra_the_import_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from aioembed.errors import MissingExtra\n"
        "try:\n    import aioembed.index\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f'{package} is not installed: pip install "aioembed[search]"\n'
