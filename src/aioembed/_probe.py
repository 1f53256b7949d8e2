"""A trial run of a program of unknown origin, in a child process that may die."""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
from functools import partial
from pathlib import Path

import anyio
import numpy as np

from ._child import python_child
from ._tasks import BlockingCall
from .errors import AioembedError, InvalidProgram, ModelFileUnreadable, ProbeFailed, shorten
from .runtime import EXECUTORCH_VERSION, Program, check_program_file

__all__ = ["probe", "probe_once"]

_logger = logging.getLogger("aioembed.handle")

_SECONDS = 300.0
_TYPED_ERROR = 3
_CHILD = f"{__name__}:try_program"


async def probe(path: Path, *, seconds: float = _SECONDS) -> None:
    """Load a program and run it once in a child process.

    Args:
        path: Of the `.pte` file.
        seconds: How long the child may take.

    Raises:
        InvalidProgram: The runtime refused the program; the message is the child's.
        ProbeFailed: The child crashed, or took too long.
    """
    command, environment = await BlockingCall(partial(python_child, _CHILD, str(path))).run()
    try:
        with anyio.fail_after(seconds):
            child = await anyio.run_process(command, check=False, env=environment)
    except TimeoutError as exc:
        raise ProbeFailed(
            f"the program {shorten(path)} did not end its trial run within {seconds:g} s"
        ) from exc
    except OSError as exc:
        raise ProbeFailed(
            f"the trial run of {shorten(path)} cannot be started ({exc}): give its sha256, which "
            "needs no trial"
        ) from exc
    if child.returncode == 0:
        return
    if child.returncode == _TYPED_ERROR:
        raise InvalidProgram(child.stderr.decode(errors="replace").strip())
    raise ProbeFailed(
        f"the program {shorten(path)} ended its trial run with {_cause(child.returncode)}; "
        "it was not loaded here. Get it from a source that publishes its sha256"
    )


async def probe_once(path: Path, folder: Path) -> None:
    """Give a program on this machine whose hash nobody published its trial run, once.

    A record in the cache folder names the file by place, size and time. Where it cannot be
    written, the file is tried each time.

    Args:
        path: Of the `.pte` file.
        folder: Of the cache.

    Raises:
        ModelFileUnreadable: There is no such file, or it cannot be read.
        InvalidProgram: It is no program, or the runtime refused it.
        ProbeFailed: The child crashed, or took too long.
    """
    record = await BlockingCall(partial(_missing_record, path, folder)).run()
    if record is None:
        return
    await probe(path)
    await BlockingCall(partial(_write, record)).run()


def _missing_record(path: Path, folder: Path) -> Path | None:
    """Return where to record that a file passed its trial, None where that is recorded."""
    check_program_file(path)
    try:
        place, stat = path.resolve(), path.stat()
    except OSError as exc:
        raise ModelFileUnreadable(f"cannot read the model at {shorten(path)}: {exc}") from exc
    identity = (str(place), stat.st_ino, stat.st_size, stat.st_mtime_ns, EXECUTORCH_VERSION)
    record = folder / ".probed" / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    return None if record.exists() else record


def _write(record: Path) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
    except OSError:
        _logger.debug("the trial run of a model cannot be recorded", exc_info=True)


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
