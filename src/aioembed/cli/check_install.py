"""The doctor's checks of what is installed: the package, its extras, the runtime, a compiler."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections import defaultdict
from importlib import metadata

from aioembed import __version__
from aioembed.runtime import EXECUTORCH_VERSION, backends, load_failure

from .checks import Check, Verdict

__all__ = ["install_checks"]

_BACKEND = "XnnpackBackend"
_REQUIREMENT = re.compile(r"([\w.-]+).*?(?:extra == [\"'](\w+)[\"'])?$")
_INSTALL_AGAIN = "install aioembed again: pip install --force-reinstall aioembed"


def install_checks() -> list[Check]:
    """Look at the versions of everything, and whether the native runtime can be loaded."""
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
        if match := _REQUIREMENT.match(requirement):
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
