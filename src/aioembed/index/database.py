"""The index file: an SQLite database in WAL mode, its vectors in a table of sqlite-vec.

Everything here blocks. The interpreter's own `sqlite3` often cannot load extensions, so that
SQLite comes with apsw.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import apsw
import numpy as np
import sqlite_vec
from numpy.typing import NDArray

from ..errors import (
    AioembedError,
    IndexDamaged,
    IndexFileError,
    IndexLocked,
    MissingExtra,
    shorten,
)
from ..models import EmbeddingSpace
from .records import FileRecord, Hit

__all__ = ["MOST_HITS", "Database"]

MOST_HITS = 4096
"""sqlite-vec's own limit for one search."""

Vector = NDArray[np.float32]

_APPLICATION = 0x61696F65
_VERSION = 1
_LOCK_MILLISECONDS = 5_000
_SCHEMA = """
CREATE TABLE space (base TEXT NOT NULL, precision TEXT NOT NULL, dim INTEGER NOT NULL) STRICT;
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE files (
  path TEXT PRIMARY KEY, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL,
  sha256 TEXT NOT NULL, error TEXT NOT NULL, retry INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


class Database:
    """One connection to an index file, for one thread at a time.

    Args:
        path: Of the file; made where there is none, in a folder that exists.

    Raises:
        IndexFileError: It cannot be opened.
        IndexLocked: Another process holds its lock.
        IndexDamaged: It is damaged, or no index.
        MissingExtra: This build of SQLite cannot load extensions.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            self._connection = apsw.Connection(str(path))
        try:
            with self._translated():
                self._open()
        except BaseException:
            self._connection.close(True)
            raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._translated():
            self._connection.close()

    # --- the space

    def space(self) -> tuple[EmbeddingSpace, int] | None:
        """Return the space of the vectors and their values each, None before the first."""
        with self._translated():
            row = self._connection.execute("SELECT base, precision, dim FROM space").fetchone()
        if row is None:
            return None
        space = EmbeddingSpace.model_validate({"base": row[0], "precision": row[1]})
        return space, int(row[2])

    def adopt(self, space: EmbeddingSpace, dim: int) -> tuple[EmbeddingSpace, int]:
        """Give a new file its space, and return the one it has."""
        with self._transaction():
            found = self.space()
            if found is None:
                self._connection.execute(
                    "INSERT INTO space VALUES (?, ?, ?)", (space.base, space.precision, dim)
                )
                self._connection.execute(
                    "CREATE VIRTUAL TABLE vectors USING "
                    f"vec0(embedding float[{dim}] distance_metric=cosine)"
                )
            return found or (space, dim)

    # --- vectors

    def put(self, vectors: Iterable[tuple[str, Vector]], files: Iterable[FileRecord] = ()) -> None:
        """Store vectors by their keys, and records of files, all or nothing."""
        with self._transaction():
            for key, vector in vectors:
                self._put(key, vector)
            for record in files:
                if not record.has_vector:
                    self._remove(record.path)
                self._put_record(record)

    def remove(self, keys: Iterable[str]) -> int:
        """Remove vectors and records of files; return how many vectors there were."""
        with self._transaction():
            return sum(self._remove(key, forget=True) for key in keys)

    def contains(self, keys: Sequence[str]) -> list[bool]:
        """Return which keys have a vector."""
        with self._translated():
            return [self._id(key) is not None for key in keys]

    def count(self) -> int:
        """Return how many vectors there are."""
        with self._translated():
            return int(self._connection.execute("SELECT count(*) FROM items").get)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""
        with self._translated():
            rows = self._connection.execute(
                "SELECT key FROM items WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
                (prefix,),
            )
            return [row[0] for row in rows]

    def vector(self, key: str) -> Vector | None:
        """Return the vector of a key."""
        with self._translated():
            number = self._id(key)
            if number is None:
                return None
            stored = self._connection.execute(
                "SELECT embedding FROM vectors WHERE rowid = ?", (number,)
            ).get
            return np.frombuffer(stored, np.float32).copy()

    def search(self, vector: Vector, k: int) -> list[Hit]:
        """Return the `k` nearest vectors, the nearest first; those of one distance by their age."""
        with self._translated():
            rows = self._connection.execute(
                "WITH near AS MATERIALIZED (SELECT rowid AS id, distance FROM vectors "
                "  WHERE embedding MATCH ? AND k = ?) "
                "SELECT key, distance FROM near JOIN items USING (id) ORDER BY distance, id",
                (vector.tobytes(), k),
            )
            return [Hit(key, 1.0 - distance) for key, distance in rows]

    # --- files

    def records(self, folder: str) -> dict[str, FileRecord]:
        """Return what is known of the files below a folder, by their paths."""
        below = folder.rstrip(os.sep) + os.sep
        with self._translated():
            rows = self._connection.execute(
                "SELECT path, mtime_ns, size, sha256, error, retry FROM files "
                "WHERE substr(path, 1, length(?1)) = ?1 ORDER BY path",
                (below,),
            )
            return {row[0]: FileRecord(*row) for row in rows}

    # ---

    def _open(self) -> None:
        self._connection.set_busy_timeout(_LOCK_MILLISECONDS)
        self._load_extension()
        if self._is_new():
            self._make()
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")

    def _load_extension(self) -> None:
        try:
            self._connection.enable_load_extension(True)
            self._connection.load_extension(sqlite_vec.loadable_path())
            self._connection.enable_load_extension(False)
        except (AttributeError, apsw.ExtensionLoadingError) as exc:
            raise MissingExtra("an apsw whose SQLite loads extensions", "search") from exc

    def _is_new(self) -> bool:
        if self._connection.pragma("application_id") == _APPLICATION:
            version = self._connection.pragma("user_version")
            if version != _VERSION:
                raise IndexDamaged(
                    f"{shorten(self._path)} is an index of version {version}; this aioembed reads "
                    f"{_VERSION}: upgrade it, or index into another file"
                )
            return False
        if self._connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            raise IndexDamaged(
                f"{shorten(self._path)} is the database of something else: give another file"
            )
        return True

    def _make(self) -> None:
        with self._transaction():
            if self._is_new():  # and no other process was faster
                self._connection.execute(_SCHEMA)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _id(self, key: str) -> int | None:
        row = self._connection.execute("SELECT id FROM items WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def _put(self, key: str, vector: Vector) -> None:
        number = self._id(key)
        if number is None:
            self._connection.execute("INSERT INTO items (key) VALUES (?)", (key,))
            self._connection.execute(
                "INSERT INTO vectors (rowid, embedding) VALUES (?, ?)",
                (self._connection.last_insert_rowid(), vector.tobytes()),
            )
        else:
            self._connection.execute(
                "UPDATE vectors SET embedding = ? WHERE rowid = ?", (vector.tobytes(), number)
            )

    def _put_record(self, record: FileRecord) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", astuple(record)
        )

    def _remove(self, key: str, *, forget: bool = False) -> bool:
        if forget:
            self._connection.execute("DELETE FROM files WHERE path = ?", (key,))
        number = self._id(key)
        if number is None:
            return False
        self._connection.execute("DELETE FROM vectors WHERE rowid = ?", (number,))
        self._connection.execute("DELETE FROM items WHERE id = ?", (number,))
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as exc:
            raise _translate(exc, self._path) from exc


def _translate(error: apsw.Error, path: Path) -> AioembedError:
    name = shorten(path)
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return IndexLocked(
            f"another process is writing to the index {name} and did not end within "
            f"{_LOCK_MILLISECONDS // 1000} s: try again, or end that process"
        )
    if isinstance(error, apsw.NotADBError | apsw.CorruptError | apsw.SQLError):
        return IndexDamaged(
            f"{name} is damaged or no index ({error}): delete it and index anew, or give another"
        )
    if isinstance(error, apsw.FullError):
        return IndexFileError(f"the disk is full: {name} keeps what was committed before")
    if isinstance(error, apsw.CantOpenError):
        return IndexFileError(
            f"cannot open the index {name}: is its folder there, and may it be written?"
        )
    return IndexFileError(f"cannot read or write the index {name}: {error}")
