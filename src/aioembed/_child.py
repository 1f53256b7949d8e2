"""A child process in Python that imports what this one does, not what the current folder has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["python_child"]

_PACKAGES = str(Path(__file__).resolve().parents[1])


def python_child(function: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a child process that calls one function.

    `python -c` imports from the current folder first, where files from elsewhere may lie. So the
    child is given this process's `sys.path` instead, without the entries that mean "wherever
    you are", and a `PYTHONPATH` without them.

    Where Python is embedded, `sys.executable` is empty or another program: the environment variable
    `AIOEMBED_PYTHON` names one to start instead.

    Args:
        function: As `package.module:name`. What it returns becomes the child's exit code.
        arguments: What it is called with.
    """
    module, _, name = function.partition(":")
    code = (
        f"import sys; sys.path[:] = {_import_path()!r}; "
        f"from {module} import {name}; sys.exit({name}(*sys.argv[1:]))"
    )
    environment = dict(os.environ)
    folders = environment.pop("PYTHONPATH", "").split(os.pathsep)
    if absolute := [folder for folder in folders if Path(folder).is_absolute()]:
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    python = os.environ.get("AIOEMBED_PYTHON") or sys.executable or ""
    return [python, "-P", "-c", code, *arguments], environment


def _import_path() -> list[str]:
    """This process's import path: absolute, and with the folder that this package lies in."""
    entries = [str(Path(entry).absolute()) for entry in sys.path if entry]
    return entries if _PACKAGES in entries else [*entries, _PACKAGES]
