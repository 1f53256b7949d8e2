"""Where the library keeps files of its own."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_folder"]


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of downloaded models and records, without making it.

    Args:
        chosen: In place of the variable `AIOEMBED_CACHE` and of the platform's own folder.
    """
    named = chosen or os.environ.get("AIOEMBED_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("aioembed")
