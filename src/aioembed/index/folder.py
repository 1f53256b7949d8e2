"""A folder of pictures: what is in it, and bringing an index up to date with it."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from .._tasks import BlockingCall
from ..errors import AioembedError, FileReadFailed, InvalidUserInput, shorten
from ..image import ImageEmbeddings
from ..images import SourcePolicy, read_file
from ..stream import Ok
from .database import Database, FileRecord

__all__ = [
    "ALWAYS_EXCLUDED",
    "FolderSync",
    "OnProgress",
    "SyncReport",
    "is_picture_name",
    "is_unchanged",
    "is_utf8",
    "walk",
]

R = TypeVar("R")

ALWAYS_EXCLUDED = (".*", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Names that are never looked at: hidden ones, those of macOS and of network storage, trash."""

_HEIF = frozenset(("heic", "heif", "hif"))
_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif".split()  # noqa: SIM905
    + "jp2 j2k jpx ico ppm pgm pbm pnm qoi pcx tga".split()  # noqa: SIM905
) | (_HEIF if find_spec("pi_heif") else frozenset())
_UNSUPPORTED = _HEIF | frozenset(
    "jxl psd raw dng cr2 cr3 nef arw orf rw2 raf pef srw svg".split()  # noqa: SIM905
)
_SCAN_BATCH = 200
_COMMIT_BATCH = 32
_CONCURRENCY = 8
_FRESH_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class SyncReport:
    """How far `EmbeddingIndex.sync` is, or what it did.

    Attributes:
        scanned: Files that were looked at.
        ignored: Those among them whose names are not those of pictures.
        unsupported: Pictures of formats that are not read, such as HEIC: how many by their
            suffix. They are ignored, too.
        total: Pictures that were found; grows until the folder was walked.
        unchanged: Pictures whose vectors are those of before.
        moved: Pictures that are new in their place and whose content had a vector already: files
            and folders that were renamed, and copies.
        embedded: Pictures that were embedded now.
        failed: Pictures that could not be embedded; `EmbeddingIndex.errors` says why.
        removed: Files that are gone, and their vectors with them.
        missing: Files that are not there, but so many of them, or in such a way, that a drive may
            not be mounted: their vectors are kept. `prune=True` removes them.
        is_scanning: Whether the folder is being walked still.
    """

    scanned: int = 0
    ignored: int = 0
    unsupported: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    unchanged: int = 0
    moved: int = 0
    embedded: int = 0
    failed: int = 0
    removed: int = 0
    missing: int = 0
    is_scanning: bool = True

    @property
    def done(self) -> int:
        """Pictures that are dealt with, of `total`."""
        return self.unchanged + self.moved + self.embedded + self.failed


OnProgress = Callable[[SyncReport], object]


# --- walking


@dataclass(frozen=True, slots=True)
class Visit:
    """A file that was found.

    Attributes:
        path: Absolute.
        is_picture: Whether its name is that of a picture; the rest is unknown where it is not.
        mtime_ns: Time of its last change, in nanoseconds.
        size: Bytes.
        inode: Of the file, which stays when it is renamed.
    """

    path: str
    is_picture: bool
    mtime_ns: int = 0
    size: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A folder that could not be listed, or a file that could not be looked at.

    Attributes:
        path: Absolute.
        reason: The system's words.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dangling:
    """A symbolic link to nothing: to a drive that is not mounted, or to what was deleted."""

    path: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was listed."""

    path: str


Found = Visit | Unreadable | Dangling | Folder


def walk(folder: str, exclude: Sequence[str] = ()) -> Iterator[Found]:
    """Visit what is below a folder, each folder once however links lead to it.

    Folders that are reached without symbolic links come first, so that a picture has the same
    path each time. Files that disappear meanwhile are passed over.

    Args:
        folder: Absolute path.
        exclude: Patterns of what is left out, as for `is_excluded`.

    Raises:
        FileReadFailed: It is missing, not a folder, or cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    folders, links = deque([folder]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        try:
            status = os.stat(path)  # noqa: PTH116  # many, and as strings
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = _entries(path)
        except OSError as exc:
            if path == folder:
                raise FileReadFailed(
                    f"{shorten(folder)}: the folder cannot be listed: {exc.strerror}"
                ) from exc
            if not isinstance(exc, FileNotFoundError):
                yield Unreadable(path, exc.strerror or str(exc))
            continue
        yield Folder(path)
        for entry in entries:
            if not _matches(entry.path[len(folder) :].lstrip(os.sep), exclude):
                found = _look(entry, folders, links)
                if found is not None:
                    yield found


def is_excluded(path: str, folder: str, exclude: Sequence[str]) -> bool:
    """Return whether a path is left out: itself, or by a folder on its way.

    Args:
        path: Below `folder`.
        folder: That is walked.
        exclude: Patterns such as `*.gif` for names, or `2019/*` for paths below the folder.
    """
    below = path[len(folder) :].lstrip(os.sep)
    while below:
        if _matches(below, exclude):
            return True
        below = below.rpartition(os.sep)[0]
    return False


def _matches(below: str, exclude: Sequence[str]) -> bool:
    """Return whether a path, relative to the folder, has a name or is a path to leave out."""
    name = below.rpartition(os.sep)[2]
    return any(
        fnmatchcase(below if "/" in pattern.rstrip("/") else name, pattern.strip("/"))
        for pattern in (*ALWAYS_EXCLUDED, *exclude)
    )


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _look(entry: os.DirEntry[str], folders: deque[str], links: deque[str]) -> Found | None:
    if not is_utf8(entry.path):
        readable = os.fsencode(entry.path).decode("utf-8", "replace")
        return Unreadable(readable, "its name is not UTF-8")
    try:
        if entry.is_dir():
            (links if entry.is_symlink() else folders).append(entry.path)
            return None
        if entry.is_symlink() or _suffix(entry.name) in _SUFFIXES:
            status = entry.stat()
    except FileNotFoundError:
        return Dangling(entry.path) if entry.is_symlink() else None
    except OSError as exc:  # a link to itself, or to what may not be looked at
        return Unreadable(entry.path, exc.strerror or str(exc))
    if _suffix(entry.name) not in _SUFFIXES:
        return Visit(entry.path, is_picture=False)
    return Visit(entry.path, True, status.st_mtime_ns, status.st_size, _inode(status))


def _suffix(path: str) -> str:
    return path.rpartition(".")[2].lower()


def is_picture_name(name: str) -> bool:
    """Return whether a file's name says that it is a picture, of a format that is read or not."""
    return "." in name and _suffix(name) in _SUFFIXES | _UNSUPPORTED


def is_utf8(text: str) -> bool:
    """Return whether a text can be stored: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Seen:
    """What a walk found: distinguishes deleted files from those of an unmounted drive."""

    def __init__(self) -> None:
        self._listed = set[str]()
        self._with_pictures = set[str]()
        self._unreadable = set[str]()
        self._dangling = set[str]()

    def add(self, found: Found) -> None:
        """Record what was found."""
        if isinstance(found, Folder):
            self._listed.add(found.path)
        elif isinstance(found, Unreadable):
            self._unreadable.add(found.path)
        elif isinstance(found, Dangling):
            self._dangling.add(found.path)
        elif found.is_picture:
            self._with_pictures.update(_folders_of(found.path))

    def is_below_unreadable(self, path: str) -> bool:
        """Return whether a file lies in a folder that could not be listed."""
        return any(folder in self._unreadable for folder in _folders_of(path))

    def is_suspicious(self, path: str) -> bool:
        """Return whether a file that is gone may be there again when a drive is mounted.

        It may where a link on its way leads nowhere, or where its folder is there but has no
        picture any more. Where the folder was deleted, the one that it was in counts.
        """
        if path in self._dangling:
            return True
        for folder in _folders_of(path):
            if folder in self._dangling:
                return True
            if folder in self._listed:
                return folder not in self._with_pictures
        return False


def _folders_of(path: str) -> Iterator[str]:
    """Return the folders that a path lies in, the innermost first."""
    while path := path.rpartition(os.sep)[0]:
        yield path


# --- syncing


class RunOnDatabase(Protocol):
    """Runs a function of the database in a worker thread."""

    def __call__(self, function: Callable[[Database], R], /) -> Awaitable[R]: ...


class FolderSync:
    """One run of `EmbeddingIndex.sync`.

    Args:
        folder: Absolute path.
        model: Loaded.
        database: Runs functions of the index's database.
        exclude: What is left out besides `ALWAYS_EXCLUDED`.
        prune: Remove what is gone even where a drive may not be mounted.
        on_progress: Receives the report after each change of it.
    """

    def __init__(
        self,
        folder: str,
        model: ImageEmbeddings,
        database: RunOnDatabase,
        *,
        exclude: Sequence[str],
        prune: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self._folder = folder
        self._model = model
        self._database = database
        self._exclude = exclude
        self._prune = prune
        self._on_progress = on_progress
        self._report = SyncReport()
        self._unsupported = Counter[str]()
        self._known: dict[str, FileRecord] = {}
        self._by_content: dict[str, list[FileRecord]] = {}
        self._gone = set[str]()
        self._seen = _Seen()
        self._stale: list[Visit] = []
        self._moved_from = set[str]()
        self._vectors: list[tuple[str, NDArray[np.float32]]] = []
        self._records: list[FileRecord] = []

    async def run(self) -> SyncReport:
        """Run the sync; what was committed stays, even if this fails."""
        try:
            await self._scan()
            await self._embed()
        finally:
            with anyio.CancelScope(shield=True):
                await self._commit()
        await self._remove()
        await self._database(Database.shrink)
        return self._report

    # --- what changed

    async def _scan(self) -> None:
        self._known = await self._database(lambda database: database.records(self._folder))
        self._by_content = await self._database(Database.records_by_content)
        self._gone = set(self._known)
        visits = walk(self._folder, self._exclude)
        while found := await BlockingCall(lambda: list(islice(visits, _SCAN_BATCH))).run():
            for one in found:
                self._seen.add(one)
                if isinstance(one, Unreadable):
                    self._gone.discard(one.path)
                    self._count(total=1)
                    await self._fail(FileRecord(one.path, -1, 0), FileReadFailed(one.reason))
                elif isinstance(one, Visit):
                    self._gone.discard(one.path)
                    self._sort(one)
            self._count(scanned=sum(not isinstance(one, Folder) for one in found))
            self._show_progress()
        self._report = replace(
            self._report,
            is_scanning=False,
            unsupported=dict(self._unsupported.most_common()),
        )
        self._show_progress()

    def _sort(self, visit: Visit) -> None:
        if not visit.is_picture:
            self._count(ignored=1)
            if (suffix := _suffix(visit.path)) in _UNSUPPORTED:
                self._unsupported[suffix] += 1
            return
        known = self._known.get(visit.path)
        self._count(total=1)
        if known is None or known.retry or not _is_as_known(visit, known):
            self._stale.append(visit)
        elif known.error:
            self._count(failed=1)
        else:
            self._count(unchanged=1)

    # --- embedding

    async def _embed(self) -> None:
        async with self._model.embed_stream(
            self._contents(), keyed=True, ordered=False, concurrency=_CONCURRENCY
        ) as results:
            async for result in results:
                if isinstance(result, Ok):
                    self._vectors.append((result.key.path, result.embedding))
                    await self._note(result.key)
                    self._count(embedded=1)
                else:
                    await self._fail(result.key, result.error)
                self._show_progress()

    async def _contents(self) -> AsyncIterator[tuple[FileRecord, bytes]]:
        for visit in self._stale:
            try:
                record, data = await BlockingCall(partial(_read, visit)).run()
            except InvalidUserInput as error:
                record = FileRecord(visit.path, visit.mtime_ns, visit.size)
                if not isinstance(error, FileReadFailed):
                    record = _as_seen(visit, "")
                await self._fail(record, error)
                self._show_progress()
                continue
            if await self._is_known(record):
                self._show_progress()
            else:
                yield record, data

    async def _is_known(self, record: FileRecord) -> bool:
        """Give a file the vector that its content has already, its own or another file's."""
        known = self._known.get(record.path)
        if known is not None and known.has_vector and known.sha256 == record.sha256:
            await self._note(record)
            self._count(unchanged=1)
            return True
        others = self._by_content.get(record.sha256, [])
        if not others:
            return False
        moved = [other for other in others if record.inode and other.inode == record.inode]
        elsewhere = (moved or others)[0].path
        vector = await self._database(lambda database: database.vector(elsewhere))
        if vector is None:
            return False
        self._vectors.append((record.path, vector))
        self._moved_from.update(other.path for other in moved)
        await self._note(record)
        self._count(moved=1)
        return True

    async def _fail(self, record: FileRecord, error: AioembedError) -> None:
        """Keep why a file has no vector; try again each time unless its content is at fault."""
        retry = isinstance(error, FileReadFailed) or not isinstance(error, InvalidUserInput)
        if retry:
            known = self._known.get(record.path)
            record = replace(record, sha256=known.sha256 if known and known.has_vector else "")
        await self._note(replace(record, error=str(error) or type(error).__name__, retry=retry))
        self._count(failed=1)

    # --- removing

    async def _remove(self) -> None:
        """Remove files that are gone; keep those that may lie on a drive that is not mounted."""
        moved = await BlockingCall(lambda: {one for one in self._moved_from if _is_gone(one)}).run()
        await self._database(partial(Database.remove, keys=moved))
        gone = {path for path in self._gone if not self._seen.is_below_unreadable(path)} - moved
        missing = set() if self._prune else self._missing(gone)
        paths = sorted(gone - missing)
        for start in range(0, len(paths), _SCAN_BATCH):
            part = paths[start : start + _SCAN_BATCH]
            self._count(removed=await self._database(partial(Database.remove, keys=part)))
            self._show_progress()
        self._count(missing=len(missing))
        self._show_progress()

    def _missing(self, gone: set[str]) -> set[str]:
        lost = {
            path
            for path in gone
            if self._known[path].has_vector and not is_excluded(path, self._folder, self._exclude)
        }
        indexed = sum(record.has_vector for record in self._known.values())
        if 2 * len(lost) > indexed:
            return lost
        return {path for path in lost if self._seen.is_suspicious(path)}

    # --- keeping

    async def _note(self, record: FileRecord) -> None:
        self._records.append(record)
        if len(self._records) >= _COMMIT_BATCH:
            with anyio.CancelScope(shield=True):
                await self._commit()

    async def _commit(self) -> None:
        vectors, self._vectors = self._vectors, []
        records, self._records = self._records, []
        if records:
            await self._database(lambda database: database.put(vectors, records))

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self._report, name) + number for name, number in more.items()}
        self._report = replace(self._report, **counts)

    def _show_progress(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._report)


def _read(visit: Visit) -> tuple[FileRecord, bytes]:
    """Return a file's bytes, and what is to be remembered of it once they are embedded. Blocks.

    A change meanwhile shows at the next sync, as the time is of before.
    """
    path = Path(visit.path)
    try:
        status = path.stat()
    except OSError as exc:  # deleted since the folder was walked, or its drive is gone
        raise FileReadFailed(f"{visit.path}: {exc.strerror or exc}") from exc
    data = read_file(path, SourcePolicy.trusted())
    seen = Visit(visit.path, True, status.st_mtime_ns, status.st_size, _inode(status))
    return _as_seen(seen, hashlib.sha256(data).hexdigest()), data


def is_unchanged(record: FileRecord) -> bool:
    """Return whether a file has the content it had, or is not there; blocks."""
    path = Path(record.path)
    try:
        status = path.stat()
        if (status.st_mtime_ns, status.st_size) == (record.mtime_ns, record.size):
            return True
        return hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _as_seen(visit: Visit, sha256: str) -> FileRecord:
    """Return the record of a file, its time left open where a later change could bear it too."""
    is_fresh = time.time_ns() - visit.mtime_ns < _FRESH_NS
    mtime_ns = -1 if is_fresh else visit.mtime_ns
    return FileRecord(visit.path, mtime_ns, visit.size, visit.inode, sha256)


def _inode(status: os.stat_result) -> int:
    return status.st_ino & (1 << 63) - 1  # SQLite's numbers are signed


def _is_as_known(visit: Visit, known: FileRecord) -> bool:
    return (visit.mtime_ns, visit.size) == (known.mtime_ns, known.size)


def _is_gone(path: str) -> bool:
    return not os.path.lexists(path)
