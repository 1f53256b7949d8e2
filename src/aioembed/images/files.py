"""Reading an image file: a regular one, of bounded size, where the policy allows it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileReadFailed, SourceRefused, shorten
from .decode import check_bytes
from .policy import SourcePolicy
from .uri import refuse_scheme

__all__ = ["read_file"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def read_file(path: Path, policy: SourcePolicy) -> bytes:
    """Read a whole file. It blocks, so call it from a worker thread.

    Args:
        path: Of a regular file; pipes, devices and folders are refused unopened.
        policy: Whether and where files may be read, and how many bytes.

    Raises:
        SourceRefused: The policy allows no files, or not this one.
        FileReadFailed: It is missing, unreadable or no regular file.
        ImageTooLarge: It has more than the policy's `max_bytes`.
    """
    if "file" not in policy.schemes:
        raise refuse_scheme(str(path), "file")
    with _as_file_error(path), _opened(path, policy) as descriptor:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        check_bytes(status.st_size, policy)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(policy.max_bytes + 1)
    check_bytes(len(data), policy)
    return data


@contextmanager
def _opened(path: Path, policy: SourcePolicy) -> Iterator[int]:
    if policy.file_roots is None:
        _require_regular(path, path.stat())
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    else:
        descriptor = _open_below(path, policy.file_roots)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_below(path: Path, roots: tuple[Path, ...]) -> int:
    """Open a file below one of the roots, following no symbolic link on the way down."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    for root in roots:
        top = Path(os.path.abspath(root))  # noqa: PTH100
        if ".." not in path.parts and absolute != top and absolute.is_relative_to(top):
            return _descend(path, top, absolute.relative_to(top).parts)
    raise _outside(path)


def _descend(path: Path, top: Path, parts: tuple[str, ...]) -> int:
    folder = os.open(top, os.O_RDONLY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = below
        status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise _outside(path)
        _require_regular(path, status)
        return os.open(parts[-1], os.O_RDONLY | _NO_WAIT | _NO_LINK, dir_fd=folder)
    except NotADirectoryError as exc:
        raise _outside(path) from exc
    finally:
        os.close(folder)


def _outside(path: Path) -> SourceRefused:
    return SourceRefused(
        f"{shorten(path)}: not below the source policy's file_roots, or reached through '..' or a "
        "symbolic link: allow with SourcePolicy.allow(file_roots=...)",
        rule="file_roots",
    )


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise FileReadFailed(f"{shorten(path)}: {kind}, not an image file")


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise FileReadFailed(f"{shorten(path)}: no such file") from exc
    except PermissionError as exc:
        raise FileReadFailed(f"{shorten(path)}: no permission to read it") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL character in the path
        reason = getattr(exc, "strerror", None) or exc
        raise FileReadFailed(f"{shorten(path)}: it cannot be read: {reason}") from exc
