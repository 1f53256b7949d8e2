"""Where results go: stdout or a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .exits import ExitCode
from .guard import usage_error, warn

__all__ = ["OutputOption", "check_output", "unwritable", "write_result"]

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the results there instead of to stdout.",
        show_default=False,
    ),
]


def check_output(output: Path | None, *, binary: bool = False) -> None:
    """Refuse an output that cannot work, before any work is done.

    Args:
        output: The file, or None for stdout.
        binary: Whether what will be written is no text.

    Raises:
        typer.Exit: The output is a terminal for binary results, or no file can be made there.
    """
    if output is None:
        if binary and sys.stdout.isatty():
            raise usage_error("these results are binary: use --output FILE, or redirect stdout")
        return
    if output.is_dir() or not output.parent.is_dir() or not _writable(output):
        raise unwritable(output, "no file can be written there")


def write_result(result: bytes, output: Path | None) -> None:
    """Write results.

    Args:
        result: All of it.
        output: The file, or None for stdout.

    Raises:
        typer.Exit: The file cannot be written.
        BrokenPipeError: The reader of stdout went away.
    """
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(result)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(result)
    except OSError as exc:
        raise unwritable(output, exc.strerror or str(exc)) from exc


def _writable(output: Path) -> bool:
    return os.access(output if output.exists() else output.parent, os.W_OK)


def unwritable(output: Path, reason: str) -> typer.Exit:
    """Say on stderr that a path cannot be written, and return the exit to raise."""
    warn(f"error: cannot write {str(output)!r}: {reason}; give another path")
    return typer.Exit(ExitCode.OUTPUT)
