"""The doctor's checks of the machine: system, processor, threads, network settings, cache."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from anyio import to_thread

from aioembed._http import read_certificates
from aioembed.errors import BrokenInstallation, InvalidConfig
from aioembed.resources.transport import open_client
from aioembed.runtime import available_cpus, thread_count

from .checks import Check, Verdict

__all__ = ["check_cache", "check_network", "machine_checks"]

_OLDEST_GLIBC = (2, 27)
_X86 = frozenset({"x86_64", "AMD64"})
_ARM = frozenset({"aarch64", "arm64"})
_X86_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM_FEATURES = ("asimd", "asimddp", "i8mm", "sve")
_SETTINGS = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_OWN_SETTINGS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")
_LEAST_FREE_BYTES = 1_000_000_000
_CPUINFO = Path("/proc/cpuinfo")


def machine_checks() -> list[Check]:
    """Look at the system, its processor, and how many threads there are to be."""
    return [_platform(), _processor(), _threads()]


async def check_network() -> Check:
    """Look whether an HTTP client can be made of the environment's settings; asks nobody."""
    settings = [name for name in _SETTINGS if os.environ.get(name) or os.environ.get(name.lower())]
    settings += [name for name in _OWN_SETTINGS if os.environ.get(name)]
    found = f"set: {', '.join(settings)}" if settings else "no proxy, token or offline setting"
    try:
        async with open_client(None):
            await to_thread.run_sync(read_certificates)
    except InvalidConfig as error:
        return Check("network", Verdict.BROKEN, found, f"nothing can be downloaded: {error}")
    if os.environ.get("HF_HUB_OFFLINE"):
        advice = "HF_HUB_OFFLINE keeps models from being downloaded"
        return Check("network", Verdict.NOTE, found, advice)
    return Check("network", Verdict.OK, found)


def check_cache(directory: Path) -> Check:
    """Look whether the folder of downloaded models can be written, and has space."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Check(
            "cache folder",
            Verdict.BROKEN,
            f"{directory}, but {nearest} cannot be written ({error.strerror})",
            "make it writable, or set AIOEMBED_CACHE to a folder that is; the embedded model "
            "and models given by path work without",
        )
    found = f"{directory}, {free / 1e9:.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return Check("cache folder", Verdict.NOTE, found, "a CLIP model needs 0.1 to 0.4 GB")
    return Check("cache folder", Verdict.OK, found)


def _platform() -> Check:
    system, machine = platform.system(), platform.machine()
    name, version = platform.libc_ver()
    found = f"{system} {machine}{f', {name} {version}' if name else ''}"
    if system not in {"Linux", "Darwin"} or machine not in _X86 | _ARM:
        advice = "there are wheels for Linux on x86-64 and aarch64, and for macOS on arm64"
        return Check("platform", Verdict.BROKEN, found, advice)
    if system == "Linux" and name != "glibc":
        advice = "the runtime's libraries are built for glibc; musl, as in Alpine, has no wheels"
        return Check("platform", Verdict.BROKEN, found, advice)
    if system == "Linux" and tuple(map(int, version.split(".")[:2])) < _OLDEST_GLIBC:
        oldest = ".".join(map(str, _OLDEST_GLIBC))
        advice = f"glibc {oldest} or newer is needed, as in Debian 10 or Ubuntu 18.04"
        return Check("platform", Verdict.BROKEN, found, advice)
    return Check("platform", Verdict.OK, found)


def _processor() -> Check:
    cpuinfo = _cpuinfo()
    if not cpuinfo and platform.system() == "Linux":
        return Check(
            "processor",
            Verdict.BROKEN,
            f"{_CPUINFO} cannot be read",
            "XNNPACK reads it to choose its kernels, and runs nothing without: mount /proc "
            "(mount -t proc proc /proc)",
        )
    is_x86 = platform.machine() in _X86
    features = _first(r"(?mi)^(?:flags|features)\s*:\s*(.*)$", cpuinfo).split()
    name = _first(r"(?m)^model name\s*:\s*(.*)$", cpuinfo) or platform.machine()
    present = [name for name in (_X86_FEATURES if is_x86 else _ARM_FEATURES) if name in features]
    found = f"{name}: {' '.join(present) or 'features unknown'}"
    if is_x86 and features and "avx2" not in features:
        advice = "without AVX2 models run several times slower; virtual machines often hide it: "
        return Check("processor", Verdict.NOTE, found, advice + "pass the host's CPU model through")
    return Check("processor", Verdict.OK, found)


def _threads() -> Check:
    usable, present = available_cpus(), os.cpu_count() or 1
    try:
        threads = f"{thread_count()} threads"
    except BrokenInstallation:
        threads = "no runtime"
    found = f"{threads}; {usable} of {present} CPUs may be used"
    if usable < present:
        why = "the CPU affinity or the cgroup's quota of this process allows no more"
        return Check("threads", Verdict.NOTE, found, why)
    return Check("threads", Verdict.OK, found)


def _first(pattern: str, text: str) -> str:
    """Return what the first match of a pattern holds, or nothing."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(errors="replace")
    except OSError:
        return ""
