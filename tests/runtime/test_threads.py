from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from aioembed.errors import InvalidConfig
from aioembed.runtime import _threads, available_cpus, set_thread_count, thread_count

Run = Callable[..., "subprocess.CompletedProcess[str]"]


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
    assert _threads._cgroup_quota(root) == 2.5


def test_the_tightest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path,
        "0::/slice/app\n",
        slice__app__cpu_max="max 100000\n",
        slice__cpu_max="150000 100000",
    )
    assert _threads._cgroup_quota(root) == 1.5


def test_a_quota_at_the_root_of_a_containers_namespace_counts(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/\n", cpu_max="400000 100000")
    assert _threads._cgroup_quota(root) == 4


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path,
        "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
        cpu__docker__1__cfs_quota_us="300000\n",
        cpu__docker__1__cfs_period_us="100000\n",
    )
    assert _threads._cgroup_quota(root) == 3


@pytest.mark.parametrize("content", ["max 100000", "", "what is this", "100000 0", "-1 100000"])
def test_no_quota_or_an_unreadable_one_sets_no_limit(tmp_path: Path, content: str) -> None:
    root = cgroup(tmp_path, "0::/\n", cpu_max=content)
    assert _threads._cgroup_quota(root) is None


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert _threads._cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (2.5, 2), (0.5, 1), (99.0, 8)])
def test_available_cpus_is_the_affinity_bounded_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int
) -> None:
    monkeypatch.setattr(_threads, "_scheduled_cpus", lambda: 8)
    monkeypatch.setattr(_threads, "_QUOTA", quota)
    assert available_cpus() == cpus


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(InvalidConfig, match="from 1 to 256"):
        set_thread_count(count)


def test_only_one_thread_or_the_shared_pool_can_be_had() -> None:
    assert _threads.wants_single_thread(1)
    assert not _threads.wants_single_thread(None)
    with pytest.raises(InvalidConfig, match="not on 200"):
        _threads.wants_single_thread(200)
    assert thread_count() >= 1


def test_the_count_is_settable_until_the_first_load(programs: Path, run_code: Run) -> None:
    code = """
import sys
from aioembed.errors import InvalidConfig
from aioembed.runtime import Program, set_thread_count, thread_count

set_thread_count(5)
set_thread_count(3)
assert thread_count() == 3
Program.load(sys.argv[1], threads=1)
set_thread_count(4)
Program.load(sys.argv[1], threads=4)
set_thread_count(4)
try:
    set_thread_count(3)
except InvalidConfig as error:
    print(error)
print(thread_count())
"""
    printed = run_code(code, programs / "linear_xnnpack.pte").stdout.splitlines()
    assert "set the count before the first load" in printed[0]
    assert printed[1] == "4"


def test_a_program_has_one_thread_and_the_pool_has_the_others(
    programs: Path, run_code: Run
) -> None:
    code = """
import sys
import numpy as np, psutil
from aioembed.runtime import Program, set_thread_count

set_thread_count(6)
process = psutil.Process()
before = process.num_threads()
alone = Program.load(sys.argv[1], threads=1)
alone.run(np.ones((1, 8), np.float32))
print(process.num_threads() - before)
Program.load(sys.argv[1])
print(process.num_threads() - before)
"""
    printed = run_code(code, programs / "linear_xnnpack.pte").stdout.split()
    assert printed == ["1", "6"]  # the second program is freed at once, and its thread ended


def test_a_forked_child_is_told_to_load_again_and_can(programs: Path, run_code: Run) -> None:
    code = """
import os, sys
import numpy as np
from aioembed.errors import InvalidConfig
from aioembed.runtime import Program

ones = np.ones((1, 8), np.float32)
program = Program.load(sys.argv[1])
expected = program.run(ones)[0]
child = os.fork()
if child == 0:
    try:
        program.run(ones)
    except InvalidConfig:
        same = (Program.load(sys.argv[1]).run(ones)[0] == expected).all()
        os._exit(0 if same else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_code(code, programs / "linear_xnnpack.pte")
