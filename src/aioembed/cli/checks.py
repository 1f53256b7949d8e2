"""The checks of `aioembed doctor` that need no model: each returns what it found."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aioembed import __version__
from aioembed.runtime import EXECUTORCH_VERSION, available_cpus, backends, thread_count

__all__ = ["Check", "Verdict", "check_cache", "installed_version", "machine_checks"]

_PACKAGES = ("anyio", "httpx", "numpy", "pillow", "pydantic")
_EXTRAS = {
    "cli": "typer",
    "text": "tokenizers",
    "search": "apsw",
    "textual": "textual",
    "export": "torch",
}
_BACKEND = "XnnpackBackend"
_X86_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM_FEATURES = ("asimd", "asimddp", "i8mm", "sve")
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_LEAST_FREE_BYTES = 1_000_000_000


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """Works, but somebody may wonder about it."""
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        verdict: How it is.
        found: What was seen.
        advice: What to do about it, or what it means.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    def as_record(self) -> dict[str, Any]:
        """Return the check for JSON."""
        return asdict(self)


def installed_version(package: str) -> str:
    """Return the version of an installed package, or the words `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine_checks() -> list[Check]:
    """Look at versions, processor, threads, backends, extras and the environment."""
    return [
        _aioembed(),
        _platform(),
        _packages(),
        _executorch(),
        _stock_executorch(),
        _processor(),
        _threads(),
        _extras(),
        _network(),
    ]


def check_cache(directory: Path) -> Check:
    """Look whether the folder of downloaded models can be written, and has space."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check(
            "cache folder",
            Verdict.BROKEN,
            f"{directory}, but {nearest} cannot be written",
            "make it writable, or set AIOEMBED_CACHE to a folder that is; the embedded model "
            "and models given by path work without",
        )
    free = shutil.disk_usage(nearest).free
    found = f"{directory}, {free / 1e9:.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return Check("cache folder", Verdict.NOTE, found, "a CLIP model needs 0.1 to 0.4 GB")
    return Check("cache folder", Verdict.OK, found)


def _aioembed() -> Check:
    found = f"{__version__}, Python {platform.python_version()}"
    return Check("aioembed", Verdict.OK, found)


def _platform() -> Check:
    libc = " ".join(platform.libc_ver()).strip()
    system = f"{platform.system()} {platform.machine()}{', ' + libc if libc else ''}"
    return Check("platform", Verdict.OK, system)


def _packages() -> Check:
    versions = (f"{name} {installed_version(name)}" for name in _PACKAGES)
    return Check("packages", Verdict.OK, ", ".join(versions))


def _executorch() -> Check:
    found = f"ExecuTorch {EXECUTORCH_VERSION}, backends {', '.join(backends()) or 'none'}"
    if _BACKEND in backends():
        return Check("runtime", Verdict.OK, found)
    return Check(
        "runtime",
        Verdict.BROKEN,
        found,
        f"{_BACKEND} is missing, so no model can run: install aioembed again "
        "(pip install --force-reinstall aioembed)",
    )


def _stock_executorch() -> Check:
    stock = installed_version("executorch")
    return Check("executorch package", Verdict.OK, f"{stock} (needed only to export)")


def _processor() -> Check:
    features = _cpu_features()
    wanted = _X86_FEATURES if platform.machine() in {"x86_64", "AMD64"} else _ARM_FEATURES
    present = [name for name in wanted if name in features]
    found = f"{_cpu_name()}: {' '.join(present) or 'features unknown'}"
    if wanted is _X86_FEATURES and features and "avx2" not in features:
        return Check(
            "processor", Verdict.NOTE, found, "without AVX2 models run several times slower"
        )
    return Check("processor", Verdict.OK, found)


def _threads() -> Check:
    usable, present = available_cpus(), os.cpu_count() or 1
    found = f"{thread_count()} threads; {usable} of {present} CPUs may be used"
    if usable < present:
        why = "the CPU affinity or the cgroup's quota of this process allows no more"
        return Check("threads", Verdict.NOTE, found, why)
    return Check("threads", Verdict.OK, found)


def _extras() -> Check:
    states = (
        f"{extra} {'installed' if find_spec(module) else 'not installed'}"
        for extra, module in _EXTRAS.items()
    )
    return Check("extras", Verdict.OK, ", ".join(states))


def _network() -> Check:
    settings = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    settings += [name for name in ("HF_HUB_OFFLINE", "HF_TOKEN") if os.environ.get(name)]
    if not settings:
        return Check("network", Verdict.OK, "no proxy, token or offline setting")
    advice = ""
    if os.environ.get("HF_HUB_OFFLINE"):
        advice = "HF_HUB_OFFLINE keeps models from being downloaded"
    verdict = Verdict.NOTE if advice else Verdict.OK
    return Check("network", verdict, f"set: {', '.join(settings)}", advice)


def _cpu_features() -> frozenset[str]:
    lines = _cpuinfo()
    flags = re.findall(r"(?mi)^(?:flags|features)\s*:\s*(.*)$", lines)
    return frozenset(flags[0].split()) if flags else frozenset()


def _cpu_name() -> str:
    names = re.findall(r"(?m)^model name\s*:\s*(.*)$", _cpuinfo())
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""
