"""The native module, or what stands in its place where it cannot be loaded."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import BrokenInstallation

__all__ = ["load_failure", "native"]

_NAME = "_native"
_AGAIN = "install aioembed again: pip install --force-reinstall --no-cache-dir aioembed"
_FROM_SOURCE = "or build it here, with a C++ compiler: pip install --no-binary aioembed aioembed"


def _explain(reason: ImportError, folder: Path) -> BrokenInstallation:
    """Return why the native module cannot be loaded, in words.

    Args:
        reason: What importing it raised.
        folder: Where it should be.
    """
    text = str(reason)
    if isinstance(reason, ModuleNotFoundError):
        return _absent(folder)
    if wanted := re.search(r"(GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found", text):
        library = "glibc" if wanted[1] == "GLIBC" else "libstdc++"
        return BrokenInstallation(
            f"the native module needs {library} of {wanted[1]}_{wanted[2]} or newer, which this "
            "system does not have",
            advice=f"use a newer system, {_FROM_SOURCE}",
        )
    if missing := re.search(r"(\S+?): cannot open shared object file", text):
        if "aioembed" in missing[1]:
            return BrokenInstallation(f"{missing[1]} is missing from {folder}", advice=_AGAIN)
        return BrokenInstallation(
            f"the system has no {missing[1]}",
            advice="install it, on Debian: apt-get install libstdc++6",
        )
    return BrokenInstallation(f"the native module cannot be loaded: {text}", advice=_AGAIN)


def _absent(folder: Path) -> BrokenInstallation:
    python = sys.implementation.cache_tag  # such as cpython-311
    others = sorted(path.name.split(".")[1] for path in folder.glob(f"{_NAME}.*.so"))
    if others and not any(tag.startswith(python) for tag in others):
        return BrokenInstallation(
            f"the native module was built for {', '.join(others)}; this Python is {python}",
            advice="install aioembed with the Python that is to run it",
        )
    return BrokenInstallation(
        f"there is no native module in {folder}",
        advice=f"{_AGAIN}; a source tree has none until it is built: make install",
    )


class _Unloadable:
    """Lets the package be imported, so that `aioembed doctor` can say what is wrong."""

    def __init__(self, failure: BrokenInstallation) -> None:
        self.failure = failure

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.failure


if TYPE_CHECKING:
    from . import _native as native
else:
    from importlib import import_module

    try:
        native = import_module(f".{_NAME}", __package__)
    except ImportError as exc:
        failure = _explain(exc, Path(__file__).parent)
        failure.__cause__ = exc
        native = _Unloadable(failure)


def load_failure() -> BrokenInstallation | None:
    """Return why the native module cannot be loaded, None where it is."""
    return native.failure if isinstance(native, _Unloadable) else None
