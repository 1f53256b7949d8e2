"""`aioembed doctor`: installations and machines that are broken, and what it says of them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import aioembed

from .conftest import Invoke

pytest.importorskip("typer")

from aioembed.cli import doctor
from aioembed.cli.doctor import Check

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the messages are those of glibc")
Report = dict[str, dict[str, str]]


def examine(invoke: Invoke) -> Report:
    """Run the doctor; return its findings by name."""
    return {check["name"]: check for check in json.loads(invoke("doctor", "-f", "json").stdout)}


def look_at_machine() -> dict[str, Check]:
    """Return what the machine's checks found, by name."""
    return {check.name: check for check in doctor.machine_checks()}


def alone(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def remove_module(runtime: Path) -> None:
    alone(runtime, "_native.*.so").unlink()


def give_other_python(runtime: Path) -> None:
    alone(runtime, "_native.*.so").rename(runtime / "_native.cpython-310-x86_64-linux-gnu.so")


def remove_library(runtime: Path) -> None:
    alone(runtime, "libaioembed_*threadpool.so").unlink()


def cut_library(runtime: Path) -> None:
    path = alone(runtime, "libaioembed_*threadpool.so")
    path.write_bytes(path.read_bytes()[:100])


def want_newer_glibc(runtime: Path) -> None:
    path = alone(runtime, "libaioembed_*threadpool.so")
    path.write_bytes(path.read_bytes().replace(b"\0GLIBC_2.", b"\0GLIBC_9."))


def want_newer_libstdcxx(runtime: Path) -> None:
    path = alone(runtime, "_native.*.so")
    path.write_bytes(path.read_bytes().replace(b"\0GLIBCXX_3.", b"\0GLIBCXX_9."))


def want_absent_library(runtime: Path) -> None:
    path = alone(runtime, "libaioembed_*threadpool.so")
    path.write_bytes(path.read_bytes().replace(b"\0libstdc++.so.6\0", b"\0libstdc--.so.6\0"))


@_LINUX
@pytest.mark.parametrize(
    ("breaking", "found", "advice"),
    [
        (remove_module, "there is no native module in", "make install"),
        (give_other_python, "was built for cpython-310", "with the Python that is to run it"),
        (remove_library, "is missing from", "install aioembed again"),
        (cut_library, "cannot be loaded", "install aioembed again"),
        (want_newer_glibc, "needs glibc of GLIBC_9.", "use a newer system"),
        (want_newer_libstdcxx, "needs libstdc++ of GLIBCXX_9.", "use a newer system"),
        (want_absent_library, "the system has no libstdc--.so.6", "apt-get install"),
    ],
)
def test_a_native_module_that_cannot_be_loaded_is_explained(
    tmp_path: Path, breaking: Callable[[Path], None], found: str, advice: str
) -> None:
    package = tmp_path / "aioembed"
    shutil.copytree(
        Path(aioembed.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    breaking(package / "runtime")
    command = [sys.executable, "-m", "aioembed", "doctor", "-f", "json"]
    ended = subprocess.run(
        command,
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    checks = {check["name"]: check for check in json.loads(ended.stdout)}
    assert ended.returncode == 6
    assert checks["runtime"]["verdict"] == "BROKEN"
    assert found in checks["runtime"]["found"]
    assert advice in checks["runtime"]["advice"]
    assert found in checks["embedding"]["found"]
    assert checks["platform"]["verdict"] == "ok"


def test_doctor_finds_a_working_installation(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path))
    result = invoke("doctor", "--format", "json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert "XnnpackBackend" in checks["runtime"]["found"]
    assert "threads" in checks["threads"]["found"]
    assert str(tmp_path) in checks["cache folder"]["found"]
    assert checks["embedding"]["verdict"] == "ok"


def test_doctor_says_what_is_broken(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("AIOEMBED_CACHE", str(in_the_way / "cache"))
    result = invoke("doctor")
    assert result.exit_code == 6
    assert "cannot be used" in " ".join(result.stdout.split())
    assert "AIOEMBED_CACHE" in result.stdout
    assert result.stderr.splitlines() == ["aioembed: broken: cache folder"]


def test_doctor_notes_settings_without_showing_their_values(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("doctor")
    assert "HF_TOKEN" in result.stdout
    assert "secret-token" not in result.stdout
    assert "keeps models from being downloaded" in " ".join(result.stdout.split())


def test_a_cache_on_a_file_system_that_takes_no_files_is_broken() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    check = doctor.check_cache(Path("/proc/self/aioembed"))
    assert check.verdict == "BROKEN"
    assert "/proc/self cannot be written" in check.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission_is_broken(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    check = doctor.check_cache(tmp_path / "cache")
    assert check.verdict == "BROKEN"
    assert "Permission denied" in check.found


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTPS_PROXY", "gopher://127.0.0.1:70", "cannot be used as a proxy"),
        ("HF_ENDPOINT", "hf-mirror.example", "(HF_ENDPOINT) cannot be used"),
        ("SSL_CERT_FILE", "/there/is/none.pem", "No such file"),
    ],
)
def test_network_settings_that_cannot_work_are_broken(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    check = examine(invoke)["network"]
    assert check["verdict"] == "BROKEN"
    assert name in check["found"]
    assert words in check["advice"]


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    command = ([sys.executable, "-c", code], dict(os.environ))
    monkeypatch.setattr(doctor, "python_child", lambda _function: command)


def test_a_trial_that_kills_its_process_is_explained(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    run_instead(monkeypatch, suicide)
    check = examine(invoke)["embedding"]
    assert check["verdict"] == "BROKEN"
    assert "SIGILL" in check["found"]
    assert "lacks an instruction" in check["advice"]


def test_a_trial_that_raises_is_reported_by_its_last_line(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_instead(monkeypatch, "import no_such_module")
    check = examine(invoke)["embedding"]
    assert check["verdict"] == "BROKEN"
    assert "no_such_module" in check["found"]


def test_a_trial_that_does_not_end_times_out(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "import threading; threading.Event().wait()"
    run_instead(monkeypatch, endless)
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    assert "did not end within 0.2 s" in examine(invoke)["embedding"]["found"]


def test_a_missing_compiler_is_not_a_defect(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    check = examine(invoke)["compiler"]
    assert check["verdict"] == "ok"
    assert "needed only where no wheel fits" in check["found"]


@_LINUX
@pytest.mark.parametrize(
    ("libc", "words"), [(("", ""), "musl"), (("glibc", "2.17"), "glibc 2.27 or newer")]
)
def test_a_c_library_without_wheels_is_named(
    monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], words: str
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    check = look_at_machine()["platform"]
    assert check.verdict == "BROKEN"
    assert words in check.advice


@_LINUX
def test_without_proc_the_message_says_to_mount_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "_CPUINFO", tmp_path / "cpuinfo")
    check = look_at_machine()["processor"]
    assert check.verdict == "BROKEN"
    assert "mount /proc" in check.advice


@_LINUX
def test_missing_cpu_features_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Old One\nflags\t\t: fpu sse2\n")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(doctor, "_CPUINFO", cpuinfo)
    check = look_at_machine()["processor"]
    assert check.verdict == "note"
    assert "Old One" in check.found
    assert "AVX2" in check.advice


def test_every_requirement_is_listed_with_its_version(invoke: Invoke) -> None:
    checks = examine(invoke)
    assert "anyio 4" in checks["packages"]["found"]
    assert "typer 0" in checks["extra cli"]["found"]
    assert "torch" in checks["extra export"]["found"]


def test_an_extra_that_is_there_in_part_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ['numpy>=1; extra == "both"', 'no-such-package>=2.0; extra == "both"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    checks = {check.name: check for check in doctor.install_checks()}
    assert checks["extra both"].verdict == "note"
    assert "no-such-package missing" in checks["extra both"].found


def test_an_extra_that_needs_another_one_is_not_there_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    required = ['aioembed[cli]; extra == "both"', 'no-such-package>=2.0; extra == "both"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    checks = {check.name: check for check in doctor.install_checks()}
    assert checks["extra both"].verdict == "ok"
    assert checks["extra both"].found == "not installed (no-such-package)"


def test_a_missing_requirement_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["no-such-package>=1"])
    checks = {check.name: check for check in doctor.install_checks()}
    assert checks["packages"].verdict == "BROKEN"
