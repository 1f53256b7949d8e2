"""The cache's blocking half: looking up, verifying, publishing and removing entries."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from aioembed._http import show_url
from aioembed.errors import DownloadInProgress, IntegrityError, ResourceInUse

from .layout import Entry
from .leases import is_leased
from .locks import try_lock
from .partial import Partial, hash_file
from .records import Sidecar, read_record, write_record
from .resource import CachedFile

__all__ = [
    "Verify",
    "entries",
    "find",
    "folder_size",
    "mark_probed",
    "publish",
    "read_cached",
    "remove",
    "remove_orphans",
    "verify",
]

Verify = Literal["recorded", "always"]


def entries(root: Path) -> Iterator[Entry]:
    """Every entry of the cache at `root`."""
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                yield Entry(root, folder.name)


def read_cached(entry: Entry) -> CachedFile | None:
    """Return what the sidecar says, None unless the file is there; the bytes are not checked."""
    sidecar = read_record(Sidecar, entry.record_path)
    if sidecar is None:
        return None
    path = entry.folder / sidecar.file
    status = _status(path)
    return _cached(entry, path, sidecar) if status is not None else None


def find(entry: Entry, sha256: str | None, size: int | None, how: Verify) -> CachedFile | None:
    """Return the verified file, None if there is none or another version is wanted.

    Raises:
        IntegrityError: The bytes are not those that were recorded. The file is discarded and its
            recorded hash kept, so that the next fetch brings the same bytes back.
    """
    sidecar = read_record(Sidecar, entry.record_path)
    if sidecar is None or sha256 not in {None, sidecar.sha256} or size not in {None, sidecar.size}:
        return None
    path = entry.folder / sidecar.file
    status = _status(path)
    if status is None:
        return None
    changed = (status.st_size, status.st_mtime_ns) != (sidecar.size, sidecar.mtime_ns)
    if changed or how == "always":
        sidecar = _verified(entry, path, sidecar)
    if sha256 is not None and not sidecar.trusted:
        sidecar = _amend(entry, sidecar.model_copy(update={"trusted": True}))
    with contextlib.suppress(OSError):
        os.utime(entry.record_path)
    return _cached(entry, path, sidecar)


def verify(entry: Entry) -> CachedFile | None:
    """Hash the file again; as `find`."""
    return find(entry, None, None, "always")


def publish(entry: Entry, part: Partial, sidecar: Sidecar) -> CachedFile:
    """Put a whole, verified part in its place: synced, record first, then one rename."""
    status = part.settle()
    sidecar = sidecar.model_copy(update={"mtime_ns": status.st_mtime_ns})
    path = entry.folder / sidecar.file
    write_record(sidecar, entry.record_path)
    (part.folder / "data").replace(path)
    _sync_folder(entry.folder)
    entry.discard_part(part.folder)
    return _cached(entry, path, sidecar)


def mark_probed(entry: Entry, sha256: str) -> CachedFile | None:
    """Record that a trial run of these very bytes went well."""
    sidecar = read_record(Sidecar, entry.record_path)
    if sidecar is None or sidecar.sha256 != sha256:
        return None
    sidecar = _amend(entry, sidecar.model_copy(update={"probed": True}))
    return _cached(entry, entry.folder / sidecar.file, sidecar)


def remove(entry: Entry) -> int:
    """Delete an entry with its record and parts; return the bytes freed.

    Raises:
        DownloadInProgress: It is being downloaded.
        ResourceInUse: A loaded model uses it.
    """
    entry.lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = try_lock(entry.lock_path)
    if lock is None:
        raise DownloadInProgress(f"{entry.key} is being downloaded: cancel that, or wait")
    try:
        cached = read_cached(entry)
        if cached is not None and is_leased(cached.path):
            raise ResourceInUse(
                f"{show_url(cached.url)} is used by a loaded model: close it, then delete"
            )
        freed = folder_size(entry.folder)
        shutil.rmtree(entry.folder, ignore_errors=False)
        return freed
    finally:
        lock.release()


def remove_orphans(entry: Entry) -> int:
    """Delete what interrupted and killed downloads left in an entry; return the bytes freed."""
    lock = try_lock(entry.lock_path) if entry.lock_path.parent.is_dir() else None
    if lock is None:
        return 0
    try:
        recorded = read_record(Sidecar, entry.record_path) is not None
        if not recorded and len(entry.idle_parts()) == len(entry.parts()):
            freed = folder_size(entry.folder)
            shutil.rmtree(entry.folder)
            return freed
        freed = 0
        for orphan in [*entry.idle_parts(), *entry.litter()]:
            freed += folder_size(orphan)
            _delete(entry, orphan)
        return freed
    finally:
        lock.release()


def folder_size(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for child in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = child.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _delete(entry: Entry, path: Path) -> None:
    if path.is_dir():
        entry.discard_part(path)
    else:
        path.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _verified(entry: Entry, path: Path, sidecar: Sidecar) -> Sidecar:
    """Hash the file; renew the record if only its time changed."""
    before = path.stat()
    if hash_file(path) != sidecar.sha256:
        with contextlib.suppress(OSError):
            path.unlink()
        raise IntegrityError(
            f"{path} is damaged: its bytes are not those that were downloaded from "
            f"{show_url(sidecar.url)}. It was discarded; load again to download it anew"
        )
    if before.st_mtime_ns == sidecar.mtime_ns:
        return sidecar
    return _amend(entry, sidecar.model_copy(update={"mtime_ns": before.st_mtime_ns}))


def _amend(entry: Entry, sidecar: Sidecar) -> Sidecar:
    """Write the record if the cache can be written; it only saves work later."""
    with contextlib.suppress(OSError):
        write_record(sidecar, entry.record_path)
    return sidecar


def _cached(entry: Entry, path: Path, sidecar: Sidecar) -> CachedFile:
    return CachedFile(
        path=path,
        sha256=sidecar.sha256,
        size=sidecar.size,
        url=sidecar.url,
        etag=sidecar.etag,
        commit=sidecar.commit,
        trusted=sidecar.trusted,
        probed=sidecar.probed,
        fetched_at=sidecar.fetched_at,
        used_at=datetime.fromtimestamp(entry.record_path.stat().st_mtime, UTC),
    )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
