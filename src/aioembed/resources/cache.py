"""The folder in which downloaded models are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

from aioembed.errors import DownloadInProgress, InvalidConfig, ResourceInUse
from aioembed.folders import cache_folder

from . import store
from .faults import translated_file_errors
from .layout import Entry
from .leases import Lease
from .resource import CachedFile, Resource
from .store import Verify

__all__ = ["Cache", "Pruned"]

T = TypeVar("T")


@dataclass(frozen=True)
class Pruned:
    """What `Cache.prune` removed.

    Attributes:
        files: Whole files that were deleted.
        freed: Bytes in all, with what interrupted downloads had left.
    """

    files: tuple[CachedFile, ...]
    freed: int


class Cache:
    """Downloaded files, each with a record of where it came from and what it hashed to.

    Every method works in a thread. Several processes may share a folder, and one that cannot be
    written still serves what is in it.

    Args:
        directory: The folder; by default `AIOEMBED_CACHE`, or else the platform's cache folder.
            It is made when the first file comes.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._root = cache_folder(directory)

    @property
    def directory(self) -> Path:
        """The folder."""
        return self._root

    def entry(self, resource: Resource) -> Entry:
        """Where the file of `resource` lies or will lie."""
        return Entry(self._root, resource.key)

    async def find(self, resource: Resource, *, verify: Verify = "recorded") -> CachedFile | None:
        """Look a file up and verify it.

        Args:
            resource: What is wanted. A file with another hash or size than it names is not it.
            verify: `recorded` hashes the file only if its size or time differ from the record;
                `always` hashes it every time.

        Returns:
            The file, None if it is not cached.

        Raises:
            IntegrityError: The bytes are not those that were recorded. The file is discarded and
                its recorded hash kept, so that the next fetch must bring the same bytes.
            CacheUnwritable: The folder cannot even be read.
        """
        entry = self.entry(resource)
        return await self._run(lambda: store.find(entry, resource.sha256, resource.size, verify))

    async def list(self) -> tuple[CachedFile, ...]:
        """Return every whole file, sorted by name; the bytes are not checked."""
        return await self._run(self._list)

    async def total_size(self) -> int:
        """Return the bytes of everything in the folder, unfinished downloads included."""
        return await self._run(
            lambda: sum(store.folder_size(entry.folder) for entry in store.entries(self._root))
        )

    async def verify(self, file: CachedFile | Resource) -> CachedFile | None:
        """Hash a file again, whatever its record says; None if it is not cached.

        Raises:
            IntegrityError: As `find`.
        """
        entry = self.entry(_as_resource(file))
        return await self._run(lambda: store.verify(entry))

    async def delete(self, file: CachedFile | Resource) -> int:
        """Delete a file, its record and what an interrupted download of it left.

        Returns:
            The bytes freed; 0 if there was nothing.

        Raises:
            ResourceInUse: A loaded model uses it.
            DownloadInProgress: It is being downloaded.
            CacheUnwritable: The folder cannot be written.
        """
        entry = self.entry(_as_resource(file))
        return await self._run(lambda: store.remove(entry) if entry.folder.is_dir() else 0)

    async def prune(
        self,
        *,
        older_than: timedelta | None = None,
        max_size: int | None = None,
        orphans: bool = True,
    ) -> Pruned:
        """Delete what is not needed; files in use and running downloads are left alone.

        Args:
            older_than: Delete files that were not used for so long.
            max_size: Delete the files that were not used for longest, until the others take at
                most so many bytes.
            orphans: Delete what interrupted and killed downloads left.

        Raises:
            InvalidConfig: `max_size` is negative.
            CacheUnwritable: The folder cannot be written.
        """
        if max_size is not None and max_size < 0:
            raise InvalidConfig(f"max_size is {max_size}: give a number of bytes")
        return await self._run(lambda: self._prune(older_than, max_size, orphans=orphans))

    async def mark_probed(self, file: CachedFile) -> CachedFile:
        """Record that a trial run of `file` in a child process went well.

        Returns:
            The file with `probed` set; unchanged if other bytes are in the cache by now.
        """
        entry = self.entry(_as_resource(file))
        return await self._run(lambda: store.mark_probed(entry, file.sha256)) or file

    async def lease(self, path: Path) -> Lease:
        """Mark the cached file at `path` as in use until the lease is released.

        Raises:
            CacheUnwritable: It cannot be opened.
        """
        return await self._run(lambda: Lease(path))

    async def _run(self, work: Callable[[], T]) -> T:
        with translated_file_errors(self._root):
            return await to_thread.run_sync(work)

    def _list(self) -> tuple[CachedFile, ...]:
        found = map(store.read_cached, store.entries(self._root))
        return tuple(sorted((file for file in found if file), key=lambda file: file.path.name))

    def _prune(
        self, older_than: timedelta | None, max_size: int | None, *, orphans: bool
    ) -> Pruned:
        freed = 0
        if orphans:
            freed = sum(store.remove_orphans(entry) for entry in store.entries(self._root))
        files = sorted(self._list(), key=lambda file: file.used_at, reverse=True)
        removed, kept_size = [], 0
        for file in files:
            aged = older_than is not None and datetime.now(UTC) - file.used_at > older_than
            crowded = max_size is not None and kept_size + file.size > max_size
            bytes_freed = self._remove_unless_busy(file) if aged or crowded else None
            if bytes_freed is None:
                kept_size += file.size
            else:
                removed.append(file)
                freed += bytes_freed
        return Pruned(tuple(removed), freed)

    def _remove_unless_busy(self, file: CachedFile) -> int | None:
        try:
            return store.remove(self.entry(_as_resource(file)))
        except (ResourceInUse, DownloadInProgress):
            return None


def _as_resource(file: CachedFile | Resource) -> Resource:
    return file if isinstance(file, Resource) else Resource(file.url)
