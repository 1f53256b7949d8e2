"""The command line. It needs the extra `cli`; `main` says so where that is missing."""

from __future__ import annotations

import sys
from enum import IntEnum

__all__ = ["ExitCode", "main"]

_EXTRA = frozenset({"typer", "rich"})


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    """All was done."""
    INPUT = 1
    """Some inputs, or all, could not be embedded; the results of the others were written."""
    USAGE = 2
    """The command was called in a wrong way."""
    MODEL = 3
    """The model is unknown, unreadable, damaged, or the runtime refused it."""
    DOWNLOAD = 4
    """The model's files could not be fetched or kept."""
    OUTPUT = 5
    """The results could not be written."""
    INSTALL = 6
    """An extra is missing, or `doctor` found something broken."""
    INDEX = 7
    """The index file is missing, locked, damaged, or of another model."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CLOSED_PIPE = 141
    """The reader of the results went away."""


def main() -> int:
    """Run the command `aioembed`.

    Returns:
        One of `ExitCode`. Most commands leave by `SystemExit` with such a code instead.
    """
    try:
        from .app import app  # noqa: PLC0415  # the extra is optional
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            f"aioembed: error: the command line needs {exc.name}, which is not installed: "
            'pip install "aioembed[cli]"\n'
        )
        return ExitCode.INSTALL
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    app(prog_name="aioembed")
    return ExitCode.OK
