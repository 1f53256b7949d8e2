"""Bringing an index up to date with a folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import numpy as np
from numpy.typing import NDArray

from .._tasks import BlockingCall
from ..errors import AioembedError, FileReadFailed, InvalidUserInput
from ..handle import Ok
from ..image import ImageEmbeddings
from ..images import SourcePolicy, read_file
from .database import Database
from .records import FileRecord, SyncReport
from .storage import Storage
from .walk import Dangling, Folder, Unreadable, Visit, walk

__all__ = ["FolderSync", "OnProgress"]

OnProgress = Callable[[SyncReport], object]

_SCAN_BATCH = 200
_COMMIT_BATCH = 32
_CONCURRENCY = 8
_FRESH_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Content:
    """A file's bytes, and what is to be remembered of it once they are embedded."""

    record: FileRecord
    data: bytes


class FolderSync:
    """One run of `EmbeddingIndex.sync`.

    Args:
        folder: Absolute path.
        model: Loaded.
        storage: Of the index.
        prune: Remove what is gone even where a drive may not be mounted.
        on_progress: Receives the report after each change of it.
    """

    def __init__(
        self,
        folder: str,
        model: ImageEmbeddings,
        storage: Storage,
        *,
        prune: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self._folder = folder
        self._model = model
        self._storage = storage
        self._prune = prune
        self._on_progress = on_progress
        self._report = SyncReport()
        self._known: dict[str, FileRecord] = {}
        self._stale: list[Visit] = []
        self._vectors: list[tuple[str, NDArray[np.float32]]] = []
        self._records: list[FileRecord] = []

    async def run(self) -> SyncReport:
        """Do it; what was committed stays, however this ends."""
        try:
            await self._scan()
            await self._embed()
        finally:
            with anyio.CancelScope(shield=True):
                await self._commit()
        return self._report

    # --- what changed

    async def _scan(self) -> None:
        self._known = await self._storage.run(lambda database: database.records(self._folder))
        gone, seen = set(self._known), _Seen()
        visits = walk(self._folder)
        while found := await BlockingCall(lambda: list(islice(visits, _SCAN_BATCH))).run():
            files = [one for one in found if not isinstance(one, Folder)]
            for one in found:
                seen.add(one)
                if isinstance(one, Unreadable):
                    gone.discard(one.path)
                    self._count(total=1)
                    await self._fail(FileRecord(one.path, -1, 0), FileReadFailed(one.reason))
                elif isinstance(one, Visit):
                    gone.discard(one.path)
                    self._sort(one)
            self._count(scanned=len(files))
            self._tell()
        await self._remove(gone, seen)
        self._report = replace(self._report, is_scanning=False)
        self._tell()

    async def _remove(self, gone: set[str], seen: _Seen) -> None:
        """Remove files that are gone; keep those that may lie on a drive that is not mounted."""
        gone -= seen.below_unreadable(gone)
        missing = set[str]()
        if not self._prune:
            missing = {path for path in gone if self._known[path].has_vector}
            indexed = sum(record.has_vector for record in self._known.values())
            if 2 * len(missing) <= indexed:
                missing = {path for path in missing if seen.is_suspicious(path)}
        await self._forget(sorted(gone - missing))
        self._count(missing=len(missing))

    def _sort(self, visit: Visit) -> None:
        if not visit.is_picture:
            self._count(ignored=1)
            return
        known = self._known.get(visit.path)
        self._count(total=1)
        if known is None or known.retry or not _is_as_known(visit, known):
            self._stale.append(visit)
        elif known.error:
            self._count(failed=1)
        else:
            self._count(unchanged=1)

    async def _forget(self, paths: list[str]) -> None:
        for start in range(0, len(paths), _SCAN_BATCH):
            part = paths[start : start + _SCAN_BATCH]
            self._count(removed=await self._storage.run(partial(Database.remove, keys=part)))

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
                self._tell()

    async def _contents(self) -> AsyncIterator[tuple[FileRecord, bytes]]:
        for visit in self._stale:
            try:
                content = await BlockingCall(partial(_read, visit)).run()
            except FileReadFailed as error:
                await self._fail(FileRecord(visit.path, visit.mtime_ns, visit.size), error)
                continue
            except InvalidUserInput as error:
                await self._fail(_as_seen(visit, ""), error)
                continue
            if self._has_vector_of(content.record):
                await self._note(content.record)
                self._count(unchanged=1)
            else:
                yield content.record, content.data

    def _has_vector_of(self, record: FileRecord) -> bool:
        known = self._known.get(record.path)
        return known is not None and known.has_vector and known.sha256 == record.sha256

    async def _fail(self, record: FileRecord, error: AioembedError) -> None:
        """Keep why a file has no vector; try again each time unless its content is at fault."""
        retry = isinstance(error, FileReadFailed) or not isinstance(error, InvalidUserInput)
        if retry:
            known = self._known.get(record.path)
            record = replace(record, sha256=known.sha256 if known and known.has_vector else "")
        await self._note(replace(record, error=str(error) or type(error).__name__, retry=retry))
        self._count(failed=1)

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
            await self._storage.run(lambda database: database.put(vectors, records))

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self._report, name) + number for name, number in more.items()}
        self._report = replace(self._report, **counts)

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._report)


def _read(visit: Visit) -> _Content:
    """Read a file; blocks. A change meanwhile shows at the next sync, as the time is of before."""
    path = Path(visit.path)
    try:
        status = path.stat()
    except OSError as exc:  # deleted since the folder was walked, or its drive is gone
        raise FileReadFailed(f"{visit.path}: {exc.strerror or exc}") from exc
    data = read_file(path, SourcePolicy.trusted())
    seen = replace(visit, mtime_ns=status.st_mtime_ns, size=status.st_size)
    return _Content(_as_seen(seen, hashlib.sha256(data).hexdigest()), data)


def _as_seen(visit: Visit, sha256: str) -> FileRecord:
    """Return the record of a file, its time left open where a later change could bear it too."""
    is_fresh = time.time_ns() - visit.mtime_ns < _FRESH_NS
    return FileRecord(visit.path, -1 if is_fresh else visit.mtime_ns, visit.size, sha256)


def _is_as_known(visit: Visit, known: FileRecord) -> bool:
    return (visit.mtime_ns, visit.size) == (known.mtime_ns, known.size)


class _Seen:
    """What a walk found, to tell files that were deleted from those of an unmounted drive."""

    def __init__(self) -> None:
        self._listed = set[str]()
        self._with_pictures = set[str]()
        self._unreadable = set[str]()
        self._dangling = set[str]()

    def add(self, found: Visit | Unreadable | Dangling | Folder) -> None:
        """Take note of one thing that was found."""
        if isinstance(found, Folder):
            self._listed.add(found.path)
        elif isinstance(found, Unreadable):
            self._unreadable.add(found.path)
        elif isinstance(found, Dangling):
            self._dangling.add(found.path)
        elif found.is_picture:
            self._with_pictures.update(_folders_of(found.path))

    def below_unreadable(self, paths: Iterable[str]) -> set[str]:
        """Return those that lie in folders that could not be listed."""
        return {path for path in paths if any(one in self._unreadable for one in _folders_of(path))}

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
