"""The index file: an SQLite database. Everything here blocks."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..errors import IndexDamaged, IndexFileError, IndexLocked, shorten
from ..models import EmbeddingSpace, ModelSpec, Preprocessing
from .sketch import Basis, unit

__all__ = ["About", "Database", "FileRecord", "Hit", "prefix_below"]

Vector = NDArray[np.float32]

_APPLICATION = 0x61696F65
_VERSION = 2
_LOCK_SECONDS = 5.0
_PAGE_BYTES = 16_384  # three vectors of 1280 values each
_CACHE_KIB = 65_536
_SCHEMA = """
CREATE TABLE about (document TEXT NOT NULL);
CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, vector BLOB NOT NULL);
CREATE TABLE basis (mean BLOB NOT NULL, directions BLOB NOT NULL, made_for INTEGER NOT NULL);
CREATE TABLE sketches (id INTEGER PRIMARY KEY, sketch BLOB NOT NULL);
CREATE TABLE files (
  path TEXT PRIMARY KEY, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL, inode INTEGER NOT NULL,
  sha256 TEXT NOT NULL, error TEXT NOT NULL, retry INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE folders (path TEXT PRIMARY KEY, exclude TEXT NOT NULL) WITHOUT ROWID;
"""

_EXACT_UP_TO = 4096
"""Up to so many vectors are all compared; more have sketches."""
_GROWTH = 4
"""Sketches are made again when there are so many times the vectors."""
_SAMPLE = 8192
_LEAST_CANDIDATES = 200
_CANDIDATES_PER_HIT = 10
_ROWS_AT_ONCE = 1024
_SKETCH_ERROR = 2e-3
"""More than float16 can change a squared distance of two sketches that are near."""


class About(BaseModel):
    """What an index knows of its vectors.

    Attributes:
        space: The space they live in.
        dim: Values each.
        model: Made them; None where a program added them.
        text_model: Embeds words in the same space; None where none was named.
        preprocessing: Given with the model, which does not say it or says another; None where
            none was given.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    space: EmbeddingSpace
    dim: int
    model: ModelSpec | None = None
    text_model: ModelSpec | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search.

    Attributes:
        key: What was found.
        similarity: Cosine of the angle to what was searched for, -1 to 1.
    """

    key: str
    similarity: float


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was when it was last read.

    Attributes:
        path: Absolute; it is the key of the file's vector.
        mtime_ns: Time of its last change, in nanoseconds; -1 where that was too fresh to tell a
            later change from it.
        size: Bytes.
        inode: Of the file, which stays when it is renamed; 0 where it was not seen.
        sha256: Of the content that was embedded, or could not be; empty where none was read.
        error: Why it could not be embedded, empty where it was.
        retry: Whether it is tried again although it did not change; until then it keeps the vector
            that it had.
    """

    path: str
    mtime_ns: int
    size: int
    inode: int = 0
    sha256: str = ""
    error: str = ""
    retry: bool = False

    @property
    def has_vector(self) -> bool:
        """Whether it has a vector, of the content with this hash."""
        return bool(self.sha256) and (self.retry or not self.error)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the first pass of a search compares: sketches, or the vectors where they are few."""

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    basis: Basis | None
    version: tuple[int, int]

    def nearest(self, query: Vector, count: int) -> list[int]:
        """Return the ids of the `count` rows nearest to a vector of length 1."""
        scores = self.rows @ (query if self.basis is None else query @ self.basis.directions)
        if count < len(scores):
            chosen = np.argpartition(scores, -count)[-count:]
            return [int(number) for number in self.ids[chosen]]
        return [int(number) for number in self.ids]


class Database:
    """One connection to an index file, for one thread at a time.

    Args:
        path: Of the file; made where there is none, in a folder that exists.

    Raises:
        IndexFileError: It cannot be opened.
        IndexLocked: Another process holds its lock.
        IndexDamaged: It is damaged, or not an index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: _Rows | None = None
        with self._translated():
            self._connection = sqlite3.connect(
                path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._translated():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._rows = None
        self._connection.close()

    # --- what it is

    def about(self) -> About | None:
        """Return what is known of the vectors, None before the first."""
        with self._translated():
            document = self._value("SELECT document FROM about")
        return None if document is None else About.model_validate_json(document)

    def adopt(self, wanted: About) -> About:
        """Set what the vectors of a new file are, and return what the file has.

        The models of a file that does not know them are remembered where the space is its own.
        """
        with self._transaction():
            found = self.about() or wanted
            if found.space == wanted.space:
                models = {"model": wanted.model, "text_model": wanted.text_model}
                news = {name: model for name, model in models.items() if model is not None}
                if found.model is not None:
                    news.pop("model", None)
                found = found.model_copy(update=news)
            self._connection.execute("DELETE FROM about")
            self._connection.execute("INSERT INTO about VALUES (?)", (found.model_dump_json(),))
            return found

    def remember(self, **news: ModelSpec | Preprocessing) -> None:
        """Keep fields of `About`, where it is known of what space the vectors are."""
        with self._transaction():
            found = self.about()
            if found is not None and (changed := found.model_copy(update=news)) != found:
                document = changed.model_dump_json()
                self._connection.execute("UPDATE about SET document = ?", (document,))

    def size_bytes(self) -> int:
        """Return the size of the file."""
        with self._translated():
            pages = self._value("PRAGMA page_count")
            return int(pages or 0) * int(self._value("PRAGMA page_size") or 0)

    # --- vectors

    def put(self, vectors: Iterable[tuple[str, Vector]], files: Iterable[FileRecord] = ()) -> None:
        """Store vectors by their keys, and records of files, all or nothing."""
        with self._transaction():
            self._put(dict(vectors))
            for record in files:
                if not record.has_vector:
                    self._remove(record.path)
                self._connection.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(record)
                )

    def remove(self, keys: Iterable[str]) -> int:
        """Remove vectors and records of files; return how many vectors there were."""
        with self._transaction():
            removed = 0
            for key in keys:
                removed += self._remove(key)
                self._connection.execute("DELETE FROM files WHERE path = ?", (key,))
            return removed

    def contains(self, key: str) -> bool:
        """Return whether a key has a vector."""
        with self._translated():
            return self._id(key) is not None

    def count(self) -> int:
        """Return how many vectors there are."""
        with self._translated():
            return self._count()

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""
        with self._translated():
            rows = self._connection.execute(
                "SELECT key FROM items WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 "
                "ORDER BY key",
                (prefix,),
            )
            return [row[0] for row in rows]

    def vector(self, key: str) -> Vector | None:
        """Return the vector of a key."""
        with self._translated():
            stored = self._value("SELECT vector FROM items WHERE key = ?", key)
        return None if stored is None else np.frombuffer(stored, np.float32).copy()

    def shrink(self) -> None:
        """Give back the space of what was removed, where that is a quarter of the file."""
        with self._translated():
            free = int(self._value("PRAGMA freelist_count") or 0)
            if 4 * free > int(self._value("PRAGMA page_count") or 0):
                # `execute` would take one step, and that frees one page.
                self._connection.executescript("PRAGMA incremental_vacuum")

    # --- searching

    def search(self, vector: Vector, k: int, min_similarity: float) -> list[Hit]:
        """Return the `k` nearest vectors, the nearest first; those of one distance by their age."""
        query = unit(vector)
        with self._translated():
            first = self._first_pass()
            wanted = k
            if first.basis is not None:
                wanted = max(_LEAST_CANDIDATES, _CANDIDATES_PER_HIT * k)
            ids, keys, rows = self._items(first.nearest(query, wanted))
        similarities = unit(rows) @ query if keys else np.zeros(0)
        order = np.lexsort((np.array(ids), -similarities))[:k]
        hits = (Hit(keys[place], float(similarities[place])) for place in order)
        return [hit for hit in hits if hit.similarity >= min_similarity]

    def duplicates(self, above: float, prefix: str) -> list[list[Hit]]:
        """Return groups of keys whose vectors are chained by similarities of at least `above`.

        No pair is missed: two sketches are never farther apart than their vectors.
        """
        with self._translated():
            first = self._first_pass()
            wanted = self._connection.execute(
                "SELECT id FROM items WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key", (prefix,)
            )
            ids = np.fromiter((row[0] for row in wanted), np.int64)
            rows = first.rows[np.searchsorted(first.ids, ids)]
            labels = self._labels(ids, rows, above, exact=first.basis is None)
            members: dict[int, list[int]] = {}
            for label, number in zip(labels.tolist(), ids.tolist(), strict=True):
                members.setdefault(label, []).append(number)
            groups = [self._group(group) for group in members.values() if len(group) > 1]
        return sorted(groups, key=len, reverse=True)

    # --- files and folders

    def records(self, folder: str) -> dict[str, FileRecord]:
        """Return what is known of the files below a folder, by their paths."""
        with self._translated():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM files "  # noqa: S608
                "WHERE path >= ?1 AND substr(path, 1, length(?1)) = ?1 ORDER BY path",
                (prefix_below(folder),),
            )
            return {row[0]: _record(row) for row in rows}

    def record(self, path: str) -> FileRecord | None:
        """Return what is known of a file."""
        with self._translated():
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM files WHERE path = ?",  # noqa: S608
                (path,),
            ).fetchone()
            return None if row is None else _record(row)

    def records_by_content(self) -> dict[str, list[FileRecord]]:
        """Return the files that have vectors, by the hash of their content."""
        found: dict[str, list[FileRecord]] = {}
        with self._translated():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM files "  # noqa: S608
                "WHERE sha256 != '' AND (retry OR error = '')"
            )
            for row in rows:
                found.setdefault(row[4], []).append(_record(row))
        return found

    def folders(self) -> dict[str, list[str]]:
        """Return the folders that were synced, and what each leaves out."""
        with self._translated():
            rows = self._connection.execute("SELECT path, exclude FROM folders ORDER BY path")
            return {path: json.loads(exclude) for path, exclude in rows}

    def remember_folder(self, path: str, exclude: Sequence[str]) -> None:
        """Keep that a folder was synced, and what it leaves out."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO folders VALUES (?, ?)", (path, json.dumps(list(exclude)))
            )

    def forget(self, folder: str) -> int:
        """Remove everything below a folder; return how many vectors there were."""
        below = prefix_below(folder)
        removed = self.remove({*self.records(folder), *self.keys(below)})
        with self._transaction():
            for path in self.folders():
                if path == folder or path.startswith(below):
                    self._connection.execute("DELETE FROM folders WHERE path = ?", (path,))
        self.shrink()
        return removed

    # ---

    def _open(self) -> None:
        if self._is_new():
            self._make()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")

    def _is_new(self) -> bool:
        if self._value("PRAGMA application_id") == _APPLICATION:
            version = self._value("PRAGMA user_version")
            if version != _VERSION:
                raise IndexDamaged(
                    f"{shorten(self._path)} is an index of version {version}, and this aioembed "
                    f"reads version {_VERSION}: "
                    + ("index again" if int(str(version)) < _VERSION else "upgrade it, or index")
                    + " into another file"
                )
            return False
        if self._value("SELECT 1 FROM sqlite_master LIMIT 1"):
            raise IndexDamaged(
                f"{shorten(self._path)} is the database of something else: give another file"
            )
        return True

    def _make(self) -> None:
        self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        with self._transaction():
            if self._is_new():  # and no other process made it meanwhile
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _value(self, statement: str, *parameters: object) -> Any:  # noqa: ANN401  # as stored
        row = self._connection.execute(statement, parameters).fetchone()
        return None if row is None else row[0]

    def _count(self) -> int:
        return int(self._value("SELECT count(*) FROM items") or 0)

    def _id(self, key: str) -> int | None:
        number = self._value("SELECT id FROM items WHERE key = ?", key)
        return None if number is None else int(number)

    def _put(self, vectors: dict[str, Vector]) -> None:
        if not vectors:
            return
        ids = []
        for key, vector in vectors.items():
            self._connection.execute(
                "INSERT INTO items (key, vector) VALUES (?1, ?2) "
                "ON CONFLICT (key) DO UPDATE SET vector = ?2",
                (key, vector.tobytes()),
            )
            ids.append(self._id(key))
        basis = self._basis()
        count = self._count()
        if count > _EXACT_UP_TO and (basis is None or count >= _GROWTH * basis.made_for):
            self._sketch_all(count)
        elif basis is not None:
            self._put_sketches(ids, basis.sketch(unit(np.stack(list(vectors.values())))))

    def _remove(self, key: str) -> bool:
        number = self._id(key)
        if number is None:
            return False
        self._connection.execute("DELETE FROM items WHERE id = ?", (number,))
        self._connection.execute("DELETE FROM sketches WHERE id = ?", (number,))
        return True

    # --- sketches

    def _basis(self) -> Basis | None:
        row = self._connection.execute("SELECT mean, directions, made_for FROM basis").fetchone()
        if row is None:
            return None
        mean = np.frombuffer(row[0], np.float32)
        return Basis(mean, np.frombuffer(row[1], np.float32).reshape(mean.size, -1), row[2])

    def _sketch_all(self, count: int) -> None:
        """Compute the directions in which the vectors differ, and make all sketches again."""
        ids = [row[0] for row in self._connection.execute("SELECT id FROM items ORDER BY id")]
        chosen = np.random.default_rng(0).permutation(len(ids))[:_SAMPLE]
        basis = Basis.of(unit(self._items([ids[place] for place in sorted(chosen)])[2]), count)
        self._connection.execute("DELETE FROM basis")
        self._connection.execute(
            "INSERT INTO basis VALUES (?, ?, ?)",
            (basis.mean.tobytes(), basis.directions.tobytes(), count),
        )
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            part = ids[start : start + _ROWS_AT_ONCE]
            self._put_sketches(part, basis.sketch(unit(self._items(part)[2])))

    def _put_sketches(self, ids: Sequence[int | None], sketches: NDArray[np.float16]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO sketches VALUES (?, ?)",
            zip(ids, map(np.ndarray.tobytes, sketches), strict=True),
        )

    def _first_pass(self) -> _Rows:
        """Return the rows to compare; they are kept until the file changes."""
        version = (int(self._value("PRAGMA data_version") or 0), self._connection.total_changes)
        if self._rows is None or self._rows.version != version:
            basis = self._basis()
            table = "id, vector FROM items" if basis is None else "id, sketch FROM sketches"
            found = self._connection.execute(f"SELECT {table} ORDER BY id").fetchall()
            stored = b"".join(row[1] for row in found)
            rows = np.frombuffer(stored, np.float32 if basis is None else np.float16)
            rows = rows.astype(np.float32, copy=False).reshape(len(found), -1 if found else 0)
            ids = np.fromiter((row[0] for row in found), np.int64, len(found))
            self._rows = _Rows(ids, unit(rows) if basis is None else rows, basis, version)
        return self._rows

    def _items(self, ids: Sequence[int]) -> tuple[list[int], list[str], Vector]:
        """Return ids, keys and vectors `(n, dim)`, by their ids."""
        found = self._connection.execute(
            "SELECT id, key, vector FROM items WHERE id IN (SELECT value FROM json_each(?)) "
            "ORDER BY id",
            (json.dumps(ids),),
        ).fetchall()
        rows = np.frombuffer(b"".join(row[2] for row in found), np.float32)
        return (
            [row[0] for row in found],
            [row[1] for row in found],
            rows.reshape(len(found), -1 if found else 0),
        )

    def _labels(
        self, ids: NDArray[np.int64], rows: Vector, above: float, *, exact: bool
    ) -> NDArray[np.int64]:
        """Give the same label to rows that are chained by similarities of at least `above`."""
        labels = np.arange(len(ids))
        squares = (rows * rows).sum(axis=1)
        farthest = 2 - 2 * above + _SKETCH_ERROR
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            products = rows[block] @ rows[start:].T
            if exact:
                near = products >= above
            else:
                near = squares[block, None] + squares[None, start:] - 2 * products <= farthest
            for offset, row in enumerate(near):
                place = start + offset
                others = start + np.flatnonzero(row)
                others = others[(others > place) & (labels[others] != labels[place])]
                if not exact and len(others):
                    others = others[self._similarities(ids[place], ids[others]) >= above]
                if len(others):
                    labels[np.isin(labels, labels[others])] = labels[place]
        return labels

    def _similarities(self, one: np.int64, others: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the exact similarities of one vector to others, in their order."""
        found, _, rows = self._items([int(one), *others.tolist()])
        rows = unit(rows)
        similarities = rows @ rows[found.index(int(one))]
        return np.asarray(similarities[np.searchsorted(found, others)])

    def _group(self, ids: list[int]) -> list[Hit]:
        found, keys, rows = self._items(ids)
        rows = unit(rows)
        order = sorted(range(len(found)), key=lambda place: keys[place])
        similarities = rows @ rows[order[0]]
        return [Hit(keys[place], float(similarities[place])) for place in order]

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
        except sqlite3.Error as exc:
            raise _translate(exc, self._path) from exc
        except (ValueError, TypeError) as exc:  # blobs of another size, a document of nonsense
            raise IndexDamaged(_DAMAGED.format(shorten(self._path), exc)) from exc


def prefix_below(folder: str) -> str:
    """Return what the paths of everything below a folder begin with."""
    return folder.rstrip(os.sep) + os.sep


_COLUMNS = "path, mtime_ns, size, inode, sha256, error, retry"


def _record(row: Sequence[Any]) -> FileRecord:
    path, mtime_ns, size, inode, sha256, error, retry = row
    return FileRecord(path, mtime_ns, size, inode, sha256, error, bool(retry))


_LOCKED = (
    "another process is writing to the index {} and did not end within "
    f"{_LOCK_SECONDS:g} s: try again, or end that process"
)
_DAMAGED = "{} is damaged ({}): restore it from a backup, or index into another file"


_FAULTS = MappingProxyType(
    {
        sqlite3.SQLITE_NOTADB: (IndexDamaged, "{} is not an index: give another file"),
        sqlite3.SQLITE_CORRUPT: (IndexDamaged, _DAMAGED),
        sqlite3.SQLITE_ERROR: (IndexDamaged, _DAMAGED),
        sqlite3.SQLITE_BUSY: (IndexLocked, _LOCKED),
        sqlite3.SQLITE_LOCKED: (IndexLocked, _LOCKED),
        sqlite3.SQLITE_FULL: (
            IndexFileError,
            "the disk is full: {} keeps what was committed before",
        ),
        sqlite3.SQLITE_READONLY: (
            IndexFileError,
            "the index {} cannot be written: it can only be searched",
        ),
        sqlite3.SQLITE_CANTOPEN: (
            IndexFileError,
            "cannot open the index {}: is its folder there, and may it be written?",
        ),
    }
)


def _translate(error: sqlite3.Error, path: Path) -> IndexFileError:
    # The extended codes keep the plain one in their lowest byte.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind, message = _FAULTS.get(code, (IndexFileError, "cannot read or write the index {}: {}"))
    return kind(message.format(shorten(path), error))
