"""The folder in which downloaded models are kept.

```
CACHE/
├── .locks/KEY.lock                  who downloads KEY now
└── KEY/                             hash of the URL, and a readable end
    ├── model.0123456789abcdef.pte   a complete, verified file; its name holds its hash
    ├── record.json                  which file is the one now, and what is known of it
    └── partial…/                    what is not complete yet (see `partial`)
```

A file is never changed under its name, and publishing another one is the rename of the record. So
a lookup needs no lock: the file that a record names is what the record says, or damaged. Nothing
is deleted by a lookup, only by `Cache.delete` and `Cache.prune`. Deleting a file that a loaded
model uses is harmless on POSIX: a mapped file lives on until it is unmapped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
from anyio import to_thread
from pydantic import AfterValidator, Field, NonNegativeInt

from .._http import UnusableURL, parse_url, show_url
from .._records import Record, hash_file, read_record, write_record
from ..errors import (
    CacheUnwritable,
    DiskFull,
    DownloadInProgress,
    IntegrityError,
    InvalidConfig,
    InvalidModelSource,
    shorten,
)
from ..folders import cache_folder
from ..options import Verify
from .lock import try_lock
from .partial import Partial, delete_folder, idle_partials, partial_folders

__all__ = [
    "Cache",
    "CachedFile",
    "Entry",
    "Pruned",
    "Resource",
    "Sidecar",
    "translated_file_errors",
]

_logger = logging.getLogger("aioembed.download")

T = TypeVar("T")

_TAIL_CHARACTERS = 64
_HASH_CHARACTERS = 16
_SHA256 = re.compile("[0-9a-f]{64}")
_UNSAFE = re.compile("[^A-Za-z0-9._-]+")
_CONTENT_NAME = re.compile(rf".+\.[0-9a-f]{{{_HASH_CHARACTERS}}}(\.[^.]*)?")
_LEFTOVER = re.compile(r"deleted\..*|doomed\..*|record\.json\..*\.tmp")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOOKUPS = 10


def _parse(url: str) -> httpx.URL:
    try:
        return parse_url(url)
    except UnusableURL as exc:
        raise InvalidModelSource(f"{show_url(url)} cannot be downloaded: {exc}") from exc


@dataclass(frozen=True)
class Resource:
    """A file on a server.

    Attributes:
        url: Where it is, `https:` (or `http:`).
        sha256: Published hash, 64 hexadecimal digits; None trusts the first download.
        size: In bytes, where known; a file of another size is refused.
        expected_size: In bytes; a file of another size is logged as a warning.

    Raises:
        InvalidModelSource: `url` cannot be downloaded.
        InvalidConfig: `sha256` or `size` is malformed.
    """

    url: str
    sha256: str | None = None
    size: int | None = None
    expected_size: int | None = None

    def __post_init__(self) -> None:
        _parse(self.url)
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidConfig(
                f"sha256 is {shorten(self.sha256)}: give 64 lower-case hexadecimal digits"
            )
        if self.size is not None and self.size < 0:
            raise InvalidConfig(f"size is {self.size}: give a number of bytes")

    @cached_property
    def canonical_url(self) -> str:
        """The URL in its normal form, without fragment and credentials."""
        return str(_parse(self.url).copy_with(fragment=None, userinfo=b""))

    @cached_property
    def file_name(self) -> str:
        """A name for the file, made of the URL's last part."""
        tail = _parse(self.url).path.rstrip("/").rpartition("/")[2]
        return _UNSAFE.sub("_", tail).strip("._")[-_TAIL_CHARACTERS:] or "file"

    @cached_property
    def key(self) -> str:
        """Name of its folder in the cache: 128 bits of the URL's hash, then a readable end."""
        digest = hashlib.sha256(self.canonical_url.encode()).hexdigest()[:32]
        return f"{digest}-{self.file_name}"

    @property
    def shown(self) -> str:
        """The URL for messages."""
        return show_url(self.url)

    def content_name(self, sha256: str) -> str:
        """Name of the file with this hash in the cache."""
        name = Path(self.file_name)
        return f"{name.stem}.{sha256[:_HASH_CHARACTERS]}{name.suffix}"


@dataclass(frozen=True)
class CachedFile:
    """A complete, verified file in the cache.

    Attributes:
        path: Where it lies.
        sha256: Of its bytes.
        size: In bytes.
        url: Where it came from.
        etag: The server's validator, where it gave one.
        commit: The hub's revision, where it gave one.
        trusted: Whether the hash was published, by the model's specification or by the hub. If
            not, the first download was trusted and its hash holds from then on.
        probed: Whether a trial run in a child process succeeded (`Cache.mark_probed`).
        fetched_at: When it was downloaded, in UTC.
        used_at: When it was last looked up, in UTC; two files are equal regardless of it.
    """

    path: Path
    sha256: str
    size: int
    url: str
    etag: str | None
    commit: str | None
    trusted: bool
    probed: bool
    fetched_at: datetime
    used_at: datetime = field(compare=False)

    @property
    def name(self) -> str:
        """The file's name on its server, made safe."""
        return Resource(self.url).file_name


class Sidecar(Record):
    """What is known of a file in the cache; `mtime_ns` with `size` shows cheaply if it changed."""

    url: Annotated[str, AfterValidator(lambda url: str(parse_url(url)))]
    file: str = Field(pattern="^[^/]+$")
    size: NonNegativeInt
    sha256: str
    mtime_ns: int
    etag: str | None = None
    commit: str | None = None
    fetched_at: datetime
    trusted: bool = False
    probed: bool = False
    damaged: bool = False


@contextmanager
def translated_file_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` about the cache in `folder` into a typed one.

    Raises:
        DiskFull: No space, quota used up, or a file-size limit.
        CacheUnwritable: Anything else.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise DiskFull(
                f"no space for the file in {folder} ({exc.strerror}): free some and load again; "
                "what arrived is kept and the download goes on from there"
            ) from exc
        raise CacheUnwritable(
            f"the cache {folder} cannot be used ({exc}): make it writable, or choose another "
            "with cache_dir or the variable AIOEMBED_CACHE"
        ) from exc


class Entry:
    """The folder of one URL in the cache. Its methods block."""

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.folder: Path = root / key
        self.record_path: Path = self.folder / "record.json"
        self.lock_path: Path = root / ".locks" / f"{key}.lock"

    def prepare(self) -> None:
        """Make the folders that a download needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock_path.parent.mkdir(exist_ok=True)

    def record(self) -> Sidecar | None:
        """What is known of the file, None if there is none."""
        return read_record(Sidecar, self.record_path)

    def current(self) -> CachedFile | None:
        """Return the file that the record names, None unless it is there."""
        sidecar = self.record()
        if sidecar is None or sidecar.damaged:
            return None
        return None if _status(self.folder / sidecar.file) is None else self._cached(sidecar)

    def find(self, sha256: str | None, size: int | None, how: Verify) -> CachedFile | None:
        """Return the verified file, None if there is none or another version is wanted.

        Raises:
            IntegrityError: The bytes are not those that were recorded. The record says so from
                then on and keeps their hash, so that the next fetch brings the same bytes back.
        """
        for _ in range(_LOOKUPS):
            sidecar = self.record()
            if sidecar is None or sidecar.damaged:
                return None
            if sha256 not in {None, sidecar.sha256} or size not in {None, sidecar.size}:
                return None
            status = _status(self.folder / sidecar.file)
            if status is not None:
                return self._verified(sidecar, status, sha256, how)
            if self.record() == sidecar:
                return None
            # Another process has published a file meanwhile, and a third one pruned the old one.
        return None

    def _verified(
        self, sidecar: Sidecar, status: os.stat_result, sha256: str | None, how: Verify
    ) -> CachedFile:
        path = self.folder / sidecar.file
        changes: dict[str, object] = {}
        is_as_recorded = (status.st_size, status.st_mtime_ns) == (sidecar.size, sidecar.mtime_ns)
        if not is_as_recorded or how == "always":
            if hash_file(path) != sidecar.sha256:
                self._amend(sidecar, {"damaged": True})
                raise IntegrityError(
                    f"{path} is damaged: its bytes are not those that were downloaded from "
                    f"{show_url(sidecar.url)}. Load again to download it again"
                )
            if not is_as_recorded:
                changes["mtime_ns"] = status.st_mtime_ns
        if sha256 is not None and not sidecar.trusted:
            changes["trusted"] = True
        if changes:
            sidecar = self._amend(sidecar, changes)
        with contextlib.suppress(OSError):
            os.utime(self.record_path)
        return self._cached(sidecar)

    def _amend(self, sidecar: Sidecar, changes: dict[str, object]) -> Sidecar:
        """Change the record, unless a download may replace it now; return what is known.

        A cache that cannot be written serves what it has: this only saves work later.
        """
        amended = sidecar.model_copy(update=changes)
        if not os.access(self.folder, os.W_OK):
            return amended
        with contextlib.suppress(OSError):
            self.lock_path.parent.mkdir(exist_ok=True)
            lock = try_lock(self.lock_path)
            if lock is not None:
                try:
                    if self.record() == sidecar:
                        write_record(amended, self.record_path)
                finally:
                    lock.release()
        return amended

    def publish(self, partial: Partial, sidecar: Sidecar) -> CachedFile:
        """Put a complete, verified file in its place and have the record name it."""
        status = partial.settle()
        sidecar = sidecar.model_copy(update={"mtime_ns": status.st_mtime_ns})
        (partial.folder / "data").replace(self.folder / sidecar.file)
        _sync_folder(self.folder)
        write_record(sidecar, self.record_path)
        _sync_folder(self.folder)
        delete_folder(partial.folder)
        return self._cached(sidecar)

    def mark_probed(self, sha256: str) -> CachedFile | None:
        """Record that a trial run of these very bytes succeeded."""
        sidecar = self.record()
        if sidecar is None or sidecar.sha256 != sha256:
            return None
        return self._cached(self._amend(sidecar, {"probed": True}))

    def delete(self) -> int:
        """Delete everything of it; return the bytes freed.

        Raises:
            DownloadInProgress: It is being downloaded.
        """
        if not self.folder.is_dir():
            return 0
        self.lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(self.lock_path)
        if lock is None:
            raise DownloadInProgress(f"{self.key} is being downloaded: cancel that, or wait")
        try:
            freed = _size_of(self.folder)
            shutil.rmtree(self.folder)
            return freed
        finally:
            lock.release()

    def delete_leftovers(self) -> int:
        """Delete what interrupted and killed downloads left, and files that were replaced.

        Returns:
            The bytes freed.
        """
        lock = try_lock(self.lock_path) if self.lock_path.parent.is_dir() else None
        if lock is None:
            return 0
        try:
            sidecar = self.record()
            idle = idle_partials(self.folder)
            if sidecar is None and len(idle) == len(partial_folders(self.folder)):
                freed = _size_of(self.folder)
                shutil.rmtree(self.folder)
                return freed
            kept = sidecar.file if sidecar is not None and not sidecar.damaged else None
            freed = 0
            for path in [*idle, *self._leftovers(kept)]:
                freed += _size_of(path)
                if path.is_dir():
                    delete_folder(path)
                else:
                    path.unlink(missing_ok=True)
            return freed
        finally:
            lock.release()

    def _leftovers(self, kept: str | None) -> list[Path]:
        return [
            path
            for path in self.folder.iterdir()
            if _LEFTOVER.fullmatch(path.name)
            or (path.name != kept and path.is_file() and _CONTENT_NAME.fullmatch(path.name))
        ]

    def _cached(self, sidecar: Sidecar) -> CachedFile:
        try:
            used_at = datetime.fromtimestamp(self.record_path.stat().st_mtime, UTC)
        except FileNotFoundError:  # deleted meanwhile
            used_at = sidecar.fetched_at
        return CachedFile(
            path=self.folder / sidecar.file,
            sha256=sidecar.sha256,
            size=sidecar.size,
            url=sidecar.url,
            etag=sidecar.etag,
            commit=sidecar.commit,
            trusted=sidecar.trusted,
            probed=sidecar.probed,
            fetched_at=sidecar.fetched_at,
            used_at=used_at,
        )


@dataclass(frozen=True)
class Pruned:
    """What `Cache.prune` removed.

    Attributes:
        files: Complete files that were deleted.
        freed: Bytes in all, with what interrupted downloads had left.
    """

    files: tuple[CachedFile, ...]
    freed: int


class Cache:
    """Downloaded files, each with a record of where it came from and its hash.

    Every method works in a thread. Several processes may share a folder, and one that cannot be
    written still serves what is in it.

    Args:
        directory: The folder; by default `AIOEMBED_CACHE`, or else the platform's cache folder.
            It is made when the first file comes.

    Raises:
        CacheUnwritable: There is not a folder to use: the user has no home, and the system's
            temporary folder does not serve either.
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
            IntegrityError: The bytes are not those that were recorded. The file counts as not
                cached from then on, and the next fetch must bring the recorded bytes.
            CacheUnwritable: The folder cannot even be read.
        """
        entry = self.entry(resource)
        return await self._run(lambda: entry.find(resource.sha256, resource.size, verify))

    async def list(self) -> tuple[CachedFile, ...]:
        """Return every complete file, sorted by name; the bytes are not checked."""
        return await self._run(self._list)

    async def total_size(self) -> int:
        """Return the bytes of everything in the folder, unfinished downloads included."""
        return await self._run(lambda: sum(_size_of(entry.folder) for entry in self._entries()))

    async def verify(self, file: CachedFile | Resource) -> CachedFile | None:
        """Hash a file again, whatever its record says; None if it is not cached.

        Raises:
            IntegrityError: As `find`.
        """
        entry = self.entry(_as_resource(file))
        return await self._run(lambda: entry.find(None, None, "always"))

    async def delete(self, file: CachedFile | Resource) -> int:
        """Delete a file, its record and what an interrupted download of it left.

        A loaded model that uses it is not affected.

        Returns:
            The bytes freed; 0 if there was nothing.

        Raises:
            DownloadInProgress: It is being downloaded.
            CacheUnwritable: The folder cannot be written.
        """
        return await self._run(self.entry(_as_resource(file)).delete)

    async def prune(
        self,
        *,
        older_than: timedelta | None = None,
        max_size: int | None = None,
        orphans: bool = True,
    ) -> Pruned:
        """Delete what is not needed; running downloads are left alone.

        Args:
            older_than: Delete files that were not used for so long.
            max_size: Delete the files that were not used for longest, until the others take at
                most so many bytes.
            orphans: Delete what interrupted and killed downloads left, and replaced files.

        Raises:
            InvalidConfig: `max_size` is negative.
            CacheUnwritable: The folder cannot be written.
        """
        if max_size is not None and max_size < 0:
            raise InvalidConfig(f"max_size is {max_size}: give a number of bytes")
        return await self._run(lambda: self._prune(older_than, max_size, orphans=orphans))

    async def mark_probed(self, file: CachedFile) -> CachedFile:
        """Record that a trial run of `file` in a child process succeeded.

        Returns:
            The file with `probed` set; unchanged if other bytes are in the cache by now.
        """
        entry = self.entry(_as_resource(file))
        return await self._run(lambda: entry.mark_probed(file.sha256)) or file

    async def _run(self, work: Callable[[], T]) -> T:
        with translated_file_errors(self._root):
            return await to_thread.run_sync(work)

    def _entries(self) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._root.iterdir()):
                if folder.is_dir() and not folder.name.startswith("."):
                    yield Entry(self._root, folder.name)

    def _list(self) -> tuple[CachedFile, ...]:
        found = [entry.current() for entry in self._entries()]
        return tuple(sorted((file for file in found if file), key=lambda file: file.path.name))

    def _prune(
        self, older_than: timedelta | None, max_size: int | None, *, orphans: bool
    ) -> Pruned:
        freed = sum(entry.delete_leftovers() for entry in self._entries()) if orphans else 0
        removed, kept_size = [], 0
        for file in sorted(self._list(), key=lambda file: file.used_at, reverse=True):
            aged = older_than is not None and datetime.now(UTC) - file.used_at > older_than
            crowded = max_size is not None and kept_size + file.size > max_size
            try:
                deleted = self.entry(_as_resource(file)).delete() if aged or crowded else 0
            except DownloadInProgress:
                deleted = 0
            if deleted:
                removed.append(file)
                freed += deleted
            else:
                kept_size += file.size
        return Pruned(tuple(removed), freed)


def _as_resource(file: CachedFile | Resource) -> Resource:
    return file if isinstance(file, Resource) else Resource(file.url)


def _status(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    total = 0
    for child in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            status = child.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
