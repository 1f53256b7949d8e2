"""Where the library keeps its files."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from .errors import CacheUnwritable, shorten

__all__ = ["cache_folder"]

_logger = logging.getLogger("aioembed")


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of downloaded models and records, without making it.

    A user without a home (as in many containers), or whose home cannot be written, gets a private
    folder in the system's temporary one, which is made, and a warning in the log.

    Args:
        chosen: In place of the variable `AIOEMBED_CACHE` and of the platform's own folder.

    Raises:
        CacheUnwritable: The path begins with a `~` that stands for nothing, or neither the home
            nor the temporary folder can be used.
    """
    named = chosen or os.environ.get("AIOEMBED_CACHE")
    if named:
        try:
            return Path(named).expanduser()
        except RuntimeError as exc:
            raise CacheUnwritable(
                f"the cache folder {shorten(named)} cannot be found, since this user has no home: "
                "set AIOEMBED_CACHE, or cache_dir, to an absolute path"
            ) from exc
    try:
        folder = platformdirs.user_cache_path("aioembed")
    except RuntimeError:
        return _temporary_folder("the home of this user, who has none,")
    if os.environ.get("XDG_CACHE_HOME") or _can_be_used(folder):
        return folder
    return _temporary_folder(str(folder))


def _can_be_used(folder: Path) -> bool:
    """Whether a folder is there, or could be made."""
    if not folder.is_absolute():
        return False  # a ~ that stands for nothing
    try:
        if folder.is_dir():
            return os.access(folder, os.R_OK | os.X_OK)
        nearest = next(path for path in folder.parents if path.exists())
    except PermissionError:
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@cache
def _temporary_folder(instead_of: str) -> Path:
    """Return a folder for this user alone: others could put model files into a shared one."""
    user = os.geteuid()
    try:
        folder = Path(tempfile.gettempdir()) / f"aioembed-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as exc:
        raise CacheUnwritable(
            f"neither {instead_of} nor a temporary folder can be used as the cache ({exc}): set "
            "AIOEMBED_CACHE to a folder that can be written"
        ) from exc
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == user
    if not is_private or status.st_mode & 0o077:
        raise CacheUnwritable(
            f"{instead_of} cannot be used as the cache, and {folder} is not private to this user: "
            "set AIOEMBED_CACHE to a folder that can be written"
        )
    _logger.warning(
        "%s cannot be used as the cache: models are kept in %s, which may not last; set "
        "AIOEMBED_CACHE to a folder that can be written",
        instead_of,
        folder,
    )
    return folder
