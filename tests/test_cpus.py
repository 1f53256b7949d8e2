"""CPUs that a process may use: its affinity and its control groups."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest

from aioembed import SourcePolicy, _cpus, load_image
from aioembed._cpus import available_cpus, cgroup_quota
from aioembed.errors import InvalidUserInput


def cgroup(root: Path, lines: str, **files: str) -> Path:
    """Write a `/proc/self/cgroup` and files below `/sys/fs/cgroup` (`__` stands for `/`)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_max", "cpu.max")
        path = path.with_name(path.name.replace("cfs_", "cpu.cfs_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_quota_of_version_2_counts(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/app\n", app__cpu_max="250000 100000\n")
    assert cgroup_quota(root) == 2.5


def test_the_tightest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path,
        "0::/slice/app\n",
        slice__app__cpu_max="max 100000\n",
        slice__cpu_max="150000 100000",
    )
    assert cgroup_quota(root) == 1.5


def test_a_quota_at_the_root_of_a_containers_namespace_counts(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/\n", cpu_max="400000 100000")
    assert cgroup_quota(root) == 4


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path,
        "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
        cpu__docker__1__cfs_quota_us="300000\n",
        cpu__docker__1__cfs_period_us="100000\n",
    )
    assert cgroup_quota(root) == 3


@pytest.mark.parametrize("content", ["max 100000", "", "what is this", "100000 0", "-1 100000"])
def test_no_quota_or_an_unreadable_one_sets_no_limit(tmp_path: Path, content: str) -> None:
    root = cgroup(tmp_path, "0::/\n", cpu_max=content)
    assert cgroup_quota(root) is None


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (2.5, 2), (0.5, 1), (99.0, 8)])
def test_available_cpus_is_the_affinity_bounded_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int
) -> None:
    monkeypatch.setattr(_cpus, "_scheduled_cpus", lambda: 8)
    monkeypatch.setattr(_cpus, "_QUOTA", quota)
    assert available_cpus() == cpus


@pytest.mark.anyio
async def test_images_are_loaded_on_no_more_cpus_than_the_quota_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_cpus, "_scheduled_cpus", lambda: 8)
    monkeypatch.setattr(_cpus, "_QUOTA", 1.0)
    opened = threading.Semaphore(0)
    begun = threading.Semaphore(0)
    running = most = 0

    class Counted:
        """Is asked for its path by the worker thread that opens it."""

        def __fspath__(self) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            begun.release()
            assert opened.acquire(timeout=60)
            running -= 1
            return str(tmp_path / "image.png")

    async with anyio.create_task_group() as tasks:

        async def load() -> None:
            with pytest.raises(InvalidUserInput):
                await load_image(Counted(), policy=SourcePolicy.trusted())

        for _ in range(3):
            tasks.start_soon(load)
        await anyio.to_thread.run_sync(lambda: begun.acquire(timeout=60))
        opened.release(3)
    assert most == 1
