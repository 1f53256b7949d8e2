"""How many CPUs this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_cpus", "cgroup_quota"]


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and its cgroups' quota.

    The quota is that of the import: event loops ask for the count, and reading files blocks them.
    A quota of 2.5 CPUs counts as 2: a pool that exceeds its quota is stopped by the kernel, with
    the event loop, until the next period.
    """
    cpus = _scheduled_cpus()
    return cpus if _QUOTA is None else max(1, min(cpus, int(_QUOTA)))


def _scheduled_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root: Path) -> float | None:
    """Least number of CPUs that a cgroup of this process, of either version, allows."""
    quotas = [
        quota
        for group in _cgroup_folders(root)
        for folder in (group, *group.parents)
        if folder.is_relative_to(root / "sys/fs/cgroup")
        for quota in (_quota_v2(folder), _quota_v1(folder))
        if quota is not None
    ]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """Folders of the groups in `/proc/self/cgroup`: `id:controllers:path`, see cgroups(7)."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            folders.append(mount / path.lstrip("/"))
        elif "cpu" in controllers.split(","):
            folders.append(mount / controllers / path.lstrip("/"))
            folders.append(mount / "cpu" / path.lstrip("/"))
    return folders


def _quota_v2(folder: Path) -> float | None:
    fields = " ".join(_lines(folder / "cpu.max")).split()
    return _ratio(fields[0], fields[1]) if len(fields) == 2 else None  # noqa: PLR2004


def _quota_v1(folder: Path) -> float | None:
    quota = "".join(_lines(folder / "cpu.cfs_quota_us"))
    period = "".join(_lines(folder / "cpu.cfs_period_us"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """CPUs per period; None for `max`, -1 and what is not a number."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


_QUOTA = cgroup_quota(Path("/"))
