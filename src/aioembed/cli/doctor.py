"""`aioembed doctor`: checks of this installation and this machine, with advice."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypedDict

import anyio
import numpy as np
import typer
from anyio import to_thread
from rich.table import Table
from rich.text import Text

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings, __version__
from aioembed._child import python_child
from aioembed._http import new_client
from aioembed.download import Cache
from aioembed.download.hub import Hub
from aioembed.errors import AioembedError, BrokenInstallation, CacheUnwritable, InvalidConfig
from aioembed.runtime import (
    EXECUTORCH_VERSION,
    available_cpus,
    backends,
    load_failure,
    thread_count,
)

from . import ExitCode
from .common import (
    DebugOption,
    ListingFormat,
    guarded,
    render_table,
    to_json,
    warn,
    write_result,
)

__all__ = [
    "Check",
    "check_cache",
    "doctor",
    "install_checks",
    "machine_checks",
    "report_trial",
]


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """Works, but may be unexpected."""
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


_BACKEND = "XnnpackBackend"
_REQUIREMENT = re.compile(r"([\w.-]+).*?(?:extra == [\"'](\w+)[\"'])?$")
_INSTALL_AGAIN = "install aioembed again: pip install --force-reinstall aioembed"


def install_checks() -> list[Check]:
    """Check all versions, and whether the native runtime can be loaded."""
    wanted = _requirements()
    extras = sorted(extra for extra in wanted if extra)
    return [
        _aioembed(),
        _packages(wanted[""]),
        *(_extra(extra, wanted[extra]) for extra in extras),
        _runtime(),
        _compiler(),
    ]


def _requirements() -> dict[str, list[str]]:
    """Return the names of the packages that each extra needs; those of no extra under ``."""
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    try:
        requirements = metadata.requires("aioembed") or []
    except metadata.PackageNotFoundError:
        return wanted
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match[1] != "aioembed":  # an extra may need another one
            wanted[match[2] or ""].append(match[1])
    return wanted


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _listed(packages: list[str]) -> str:
    return ", ".join(f"{name} {_version(name) or 'missing'}" for name in packages)


def _aioembed() -> Check:
    found = f"{__version__}, Python {platform.python_version()}"
    installed = _version("aioembed")
    if installed == __version__:
        return Check("aioembed", Verdict.OK, found)
    advice = f"its files are of {__version__}, its metadata of {installed or 'no version'}: "
    return Check("aioembed", Verdict.NOTE, found, advice + "two installations are mixed")


def _packages(names: list[str]) -> Check:
    if missing := [name for name in names if not _version(name)]:
        return Check("packages", Verdict.BROKEN, f"missing: {', '.join(missing)}", _INSTALL_AGAIN)
    return Check("packages", Verdict.OK, _listed(names))


def _extra(extra: str, names: list[str]) -> Check:
    present = [name for name in names if _version(name)]
    if len(present) == len(names):
        return Check(f"extra {extra}", Verdict.OK, _listed(names))
    advice = f'pip install "aioembed[{extra}]"'
    missing = [name for name in names if name not in present]
    if not present:
        return Check(f"extra {extra}", Verdict.OK, f"not installed ({', '.join(missing)})")
    found = f"in part: {_listed(names)}"
    return Check(f"extra {extra}", Verdict.NOTE, found, f"if it is to be used: {advice}")


def _runtime() -> Check:
    if failure := load_failure():
        return Check("runtime", Verdict.BROKEN, failure.found, failure.advice)
    found = f"ExecuTorch {EXECUTORCH_VERSION}, backends {', '.join(backends()) or 'none'}"
    if _BACKEND in backends():
        return Check("runtime", Verdict.OK, found)
    advice = f"{_BACKEND} is missing, so no model can run: {_INSTALL_AGAIN}"
    return Check("runtime", Verdict.BROKEN, found, advice)


def _compiler() -> Check:
    named = os.environ.get("CXX", "c++").split()[0]
    place = shutil.which(named)
    found = place or f"no {named}; needed only where no wheel fits: apt-get install g++"
    return Check("compiler", Verdict.OK, found)


_OLDEST_GLIBC = (2, 27)
_X86 = frozenset({"x86_64", "AMD64"})
_ARM = frozenset({"aarch64", "arm64"})
_X86_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM_FEATURES = ("asimd", "asimddp", "i8mm", "sve")
_SETTINGS = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_OWN_SETTINGS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN")
_CACHE_ADVICE = (
    "make it writable, or set AIOEMBED_CACHE to a folder that is; the embedded model and models "
    "given by path work without"
)

_LEAST_FREE_BYTES = 1_000_000_000
_CPUINFO = Path("/proc/cpuinfo")


def machine_checks() -> list[Check]:
    """Check the system, its processor and the number of threads."""
    return [_platform(), _processor(), _threads()]


async def check_network() -> Check:
    """Check that the environment's settings make an HTTP client; sends no request."""
    settings = [name for name in _SETTINGS if os.environ.get(name) or os.environ.get(name.lower())]
    settings += [name for name in _OWN_SETTINGS if os.environ.get(name)]
    found = f"set: {', '.join(settings)}" if settings else "no proxy, token or offline setting"
    try:
        Hub.configured()
        client = await to_thread.run_sync(new_client)
        await client.aclose()
    except InvalidConfig as error:
        return Check("network", Verdict.BROKEN, found, f"nothing can be downloaded: {error}")
    if os.environ.get("HF_HUB_OFFLINE"):
        advice = "HF_HUB_OFFLINE keeps models from being downloaded"
        return Check("network", Verdict.NOTE, found, advice)
    return Check("network", Verdict.OK, found)


async def _cache() -> Check:
    try:
        cache = Cache()
        files = await cache.list()
    except CacheUnwritable as error:
        return Check("cache folder", Verdict.BROKEN, str(error), _CACHE_ADVICE)
    return await to_thread.run_sync(check_cache, cache.directory, len(files))


def check_cache(directory: Path, files: int = 0) -> Check:
    """Check that the folder of downloaded models can be written and has space.

    A read-only folder is healthy if there are files in it.
    """
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        if files:
            found = f"{directory}, with {files} files; it cannot be written"
            return Check("cache folder", Verdict.OK, found)
        found = f"{directory}, but {nearest} cannot be written ({error.strerror})"
        return Check("cache folder", Verdict.BROKEN, found, _CACHE_ADVICE)
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


_SIDE = 64
_LENGTH_TOLERANCE = 1e-3
_SECONDS = 120.0
_CHILD = f"{__name__}:report_trial"
_SEE_ABOVE = "if no line above says why, install again: pip install --force-reinstall aioembed"


class _Trial(TypedDict):
    """What the child found: seconds and the vector's length."""

    load_seconds: float
    embed_seconds: float
    length: float


async def examine() -> list[Check]:
    """Return what every check found."""
    checks = await to_thread.run_sync(install_checks)
    checks += await to_thread.run_sync(machine_checks)
    checks.append(await check_network())
    checks.append(await _cache())
    checks.append(await _embedding())
    return checks


async def _embedding() -> Check:
    """Embed noise with the embedded model in a child process, which may crash."""
    command, environment = await to_thread.run_sync(python_child, _CHILD)
    try:
        with anyio.fail_after(_SECONDS):
            child = await anyio.run_process(command, check=False, env=environment)
    except OSError as error:
        late = isinstance(error, TimeoutError)
        found = f"did not end within {_SECONDS:g} s" if late else f"cannot be tried: {error}"
        return _broken(found, _SEE_ABOVE)
    if child.returncode < 0:
        return _died(signal.Signals(-child.returncode))
    if child.returncode:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return _broken(lines[-1] if lines else f"exit code {child.returncode}", _SEE_ABOVE)
    trial: _Trial = json.loads(child.stdout)
    found = (
        f"{EFFICIENTNET_LITE0.name} loaded in {trial['load_seconds'] * 1000:.0f} ms, "
        f"embedded in {trial['embed_seconds'] * 1000:.1f} ms"
    )
    if abs(trial["length"] - 1) > _LENGTH_TOLERANCE:
        return _broken(found, f"the vector has length {trial['length']:.4f}, not 1: report it")
    return Check("embedding", Verdict.OK, found)


def _broken(found: str, advice: str) -> Check:
    return Check("embedding", Verdict.BROKEN, f"{EFFICIENTNET_LITE0.name}: {found}", advice)


def _died(cause: signal.Signals) -> Check:
    reasons = {
        signal.SIGILL: "the processor lacks an instruction that the runtime uses: see `processor`",
        signal.SIGKILL: "the system ended it, most often because memory ran out",
    }
    return _broken(f"ended by {cause.name}", reasons.get(cause, _SEE_ABOVE))


def report_trial() -> None:
    """Write what the trial found to stdout, for the process that started it; errors to stderr."""
    try:
        trial = anyio.run(_try_embedding)
    except AioembedError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(trial))


async def _try_embedding() -> _Trial:
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    begun = time.perf_counter()
    async with ImageEmbeddings() as model:
        await model.load()
        loaded = time.perf_counter()
        vector = await model.forward(noise)
    return {
        "load_seconds": loaded - begun,
        "embed_seconds": time.perf_counter() - loaded,
        "length": float(np.linalg.norm(vector)),
    }


_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BROKEN: "bold red"}


def doctor(
    form: Annotated[
        ListingFormat, typer.Option("--format", "-f", help="json is for programs.")
    ] = ListingFormat.TABLE,
    debug: DebugOption = False,
) -> None:
    """Check this installation.

    Says in words what is broken, and exits with 6 if anything is.
    """
    with guarded(debug):
        checks = anyio.run(examine)
        if form is ListingFormat.JSON:
            write_result(to_json([asdict(check) for check in checks]), None)
        else:
            write_result(render_table(_table(checks), wrap=True), None)
        broken = [check.name for check in checks if check.verdict is Verdict.BROKEN]
        if broken:
            warn(f"broken: {', '.join(broken)}")
            raise typer.Exit(ExitCode.INSTALL)


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        lines = [check.found, *([f"→ {check.advice}"] if check.advice else [])]
        table.add_row(verdict, check.name, Text("\n".join(lines)))
    return table
