"""Translation of the file system's errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aioembed.errors import CacheUnwritable, DiskFull

__all__ = ["translated_file_errors"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def translated_file_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` about the cache in `folder` into a typed one.

    Raises:
        DiskFull: No space, quota used up, or a file-size limit.
        CacheUnwritable: Any other refusal.
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
