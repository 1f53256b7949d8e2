"""Pictures below a folder, by their names. Everything here blocks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FileReadFailed, shorten

__all__ = ["Dangling", "Folder", "Unreadable", "Visit", "walk"]

_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff avif".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Visit:
    """A file that was found.

    Attributes:
        path: Absolute.
        mtime_ns: Time of its last change, in nanoseconds.
        size: Bytes.
        is_picture: Whether its name is that of a picture; the rest is unknown where it is not.
    """

    path: str
    is_picture: bool
    mtime_ns: int = 0
    size: int = 0


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
    """A symbolic link to nothing: to a drive that is not mounted, or to what was deleted.

    Attributes:
        path: Absolute.
    """

    path: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was listed.

    Attributes:
        path: Absolute.
    """

    path: str


Found = Visit | Unreadable | Dangling | Folder


def walk(folder: str) -> Iterator[Found]:
    """Visit what is below a folder, each folder once however links lead to it.

    Folders that are reached without symbolic links come first, so that a picture has the same
    path each time. Files that disappear meanwhile are passed over.

    Args:
        folder: Absolute path.

    Raises:
        FileReadFailed: It is missing, no folder, or cannot be listed.
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
            found = _look(entry, folders, links)
            if found is not None:
                yield found


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _look(entry: os.DirEntry[str], folders: deque[str], links: deque[str]) -> Found | None:
    if not _is_text(entry.path):
        readable = os.fsencode(entry.path).decode("utf-8", "replace")
        return Unreadable(readable, "its name is no UTF-8")
    try:
        if entry.is_dir():
            (links if entry.is_symlink() else folders).append(entry.path)
            return None
        if entry.is_symlink() or _is_picture(entry.name):
            status = entry.stat()
    except FileNotFoundError:
        return Dangling(entry.path) if entry.is_symlink() else None
    except OSError as exc:  # a link to itself, or to what may not be looked at
        return Unreadable(entry.path, exc.strerror or str(exc))
    if not _is_picture(entry.name):
        return Visit(entry.path, is_picture=False)
    return Visit(entry.path, True, status.st_mtime_ns, status.st_size)


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in _SUFFIXES


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
