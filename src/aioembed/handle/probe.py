"""A trial run of a program of unknown origin, in a child process that may die."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import anyio
import numpy as np

from ..errors import AioembedError, InvalidProgram, ProbeFailed, shorten
from ..runtime import Program

__all__ = ["probe"]

_SECONDS = 300.0
_TYPED_ERROR = 3
_CHILD = f"import sys; from {__name__} import try_program; sys.exit(try_program(sys.argv[1]))"


async def probe(path: Path, *, seconds: float = _SECONDS) -> None:
    """Load a program and run it once in a child process.

    Args:
        path: Of the `.pte` file.
        seconds: How long the child may take.

    Raises:
        InvalidProgram: The runtime refused the program; the message is the child's.
        ProbeFailed: The child crashed, or took too long.
    """
    command = [sys.executable, "-c", _CHILD, str(path)]
    try:
        with anyio.fail_after(seconds):
            child = await anyio.run_process(command, check=False)
    except TimeoutError as exc:
        raise ProbeFailed(
            f"the program {shorten(path)} did not end its trial run within {seconds:g} s"
        ) from exc
    if child.returncode == 0:
        return
    if child.returncode == _TYPED_ERROR:
        raise InvalidProgram(child.stderr.decode(errors="replace").strip())
    raise ProbeFailed(
        f"the program {shorten(path)} ended its trial run with {_cause(child.returncode)}; "
        "it was not loaded here. Get it from a source that publishes its sha256"
    )


def _cause(returncode: int) -> str:
    if returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def try_program(path: str) -> int:
    """Load a program and run `forward` once on zeros; return the child's exit code."""
    try:
        program = Program.load(path)
        method = program.methods.get("forward")
        if method is not None:
            program.run(*(np.zeros(info.shape, info.dtype) for info in method.inputs))
    except AioembedError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads it
        return _TYPED_ERROR
    return 0
