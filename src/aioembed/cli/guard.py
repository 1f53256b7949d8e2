"""What every command has in common: errors in one line, quiet interrupts, closed pipes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from aioembed.errors import AioembedError

from .exits import ExitCode, exit_code_of

__all__ = ["guarded", "report_error", "usage_error", "warn"]


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Run a command's body; turn its errors into a line on stderr and an exit code.

    Args:
        debug: Show tracebacks.

    Raises:
        typer.Exit: In place of an `AioembedError`, an interrupt or a broken pipe.
    """
    try:
        yield
        sys.stdout.flush()
    except AioembedError as error:
        report_error(error, debug=debug)
        raise typer.Exit(exit_code_of(error)) from error
    except BrokenPipeError as exc:
        # What is still buffered must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.CLOSED_PIPE) from exc
    except KeyboardInterrupt as exc:
        warn("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from exc


def report_error(error: AioembedError, *, name: str = "", debug: bool = False) -> None:
    """Say on stderr, in one line, what failed.

    Args:
        error: What was raised.
        name: The input it belongs to, where the message may not name it.
        debug: Show the traceback before the line.
    """
    if debug:
        traceback.print_exception(error)
    message = " ".join(str(error).split())
    if name and name not in message:
        message = f"{name}: {message}"
    typer.echo(f"aioembed: error: {message}", err=True)


def warn(message: str) -> None:
    """Say something on stderr, in one line."""
    typer.echo(f"aioembed: {message}", err=True)


def usage_error(message: str) -> typer.Exit:
    """Say on stderr how the command should be called, and return the exit to raise."""
    warn(f"error: {message}")
    return typer.Exit(ExitCode.USAGE)
