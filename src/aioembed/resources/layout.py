"""Where a URL's file, its record and its unfinished parts lie in the cache.

```
CACHE/
├── .locks/KEY.lock                    who downloads KEY now
└── KEY/                               hash of the URL and a readable tail
    ├── FILE                           the whole, verified file
    ├── record.json                    its sidecar
    ├── partial/                       what an interrupted download left: data, journal.json
    └── partial.HOST.PID.RANDOM/       the same while that process writes to it
```

A process takes a part over by renaming its folder, which succeeds for one process only. So no
two ever write to one file, even where file locks do nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

__all__ = ["Entry"]

_PART = "partial"
_ABANDONED_SECONDS = 24 * 3600.0
_HOST = re.sub("[^A-Za-z0-9-]", "_", platform.node()) or "host"


class Entry:
    """The folder of one URL in the cache. Its methods block."""

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.folder: Path = root / key
        self.record_path: Path = self.folder / "record.json"
        self.lock_path: Path = root / ".locks" / f"{key}.lock"

    def prepare(self) -> None:
        """Make the folders a download needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock_path.parent.mkdir(exist_ok=True)

    def claim_part(self) -> Path:
        """Take over the largest part that nobody writes to, or begin one; drop the others."""
        mine = self.folder / f"{_PART}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"
        for part in sorted(self.idle_parts(), key=_part_size, reverse=True):
            if mine.exists():
                self.discard_part(part)
            else:
                with contextlib.suppress(FileNotFoundError):
                    part.rename(mine)
        mine.mkdir(exist_ok=True)
        return mine

    def release_part(self, part: Path) -> None:
        """Leave a part for a later download; of two, the one that was there stays."""
        try:
            part.rename(self.folder / _PART)
        except OSError:
            self.discard_part(part)

    def discard_part(self, part: Path) -> None:
        """Delete a part; its folder is taken first, so that nobody claims half of it."""
        doomed = part.with_name(f"doomed.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            part.rename(doomed)
            shutil.rmtree(doomed)

    def parts(self) -> list[Path]:
        """Every part, written to or not."""
        return [path for path in self._children() if path.name.partition(".")[0] == _PART]

    def idle_parts(self) -> list[Path]:
        """Parts that no living process writes to."""
        return [part for part in self.parts() if _is_idle(part)]

    def litter(self) -> list[Path]:
        """What killed processes left besides parts: drafts of records, half-deleted folders."""
        return [p for p in self._children() if p.suffix == ".tmp" or p.name.startswith("doomed.")]

    def part_size(self) -> int:
        """Bytes of the largest part."""
        return max((_part_size(part) for part in self.parts()), default=0)

    def _children(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _part_size(part: Path) -> int:
    try:
        return (part / "data").stat().st_size
    except OSError:
        return 0


def _is_idle(part: Path) -> bool:
    if part.name == _PART:
        return True
    _, host, pid, _ = part.name.split(".")
    if host == _HOST and not _is_alive(int(pid)):
        return True
    try:
        written_at = max(part.stat().st_mtime, (part / "data").stat().st_mtime)
    except OSError:
        return False
    return time.time() - written_at > _ABANDONED_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
