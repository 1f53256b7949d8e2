"""A trial run of a program of unknown origin, in a child process that may die."""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from ._child import python_child
from ._tasks import BlockingCall
from .errors import (
    AioembedError,
    InvalidProgram,
    ModelFileUnreadable,
    ProbeFailed,
    ProbeIncomplete,
    shorten,
)
from .runtime import EXECUTORCH_VERSION, Program, TensorInfo, check_program_file

__all__ = ["probe", "probe_once"]

_logger = logging.getLogger("aioembed.handle")

_SECONDS = 300.0
_TYPED_ERROR = 3
_IMAGE_AXES = 3
_KEPT = "its file is kept"
_CHILD = f"{__name__}:try_program"


async def probe(path: Path, *, seconds: float = _SECONDS) -> None:
    """Load a program and run it once in a child process.

    Args:
        path: Of the `.pte` file.
        seconds: How long the child may take.

    Raises:
        InvalidProgram: The runtime refused the program; the message is the child's.
        ProbeFailed: The child crashed.
        ProbeIncomplete: The trial took too long, ran out of memory, or could not be started.
    """
    command, environment = await BlockingCall(partial(python_child, _CHILD, str(path))).run()
    try:
        with anyio.fail_after(seconds):
            child = await anyio.run_process(command, check=False, env=environment)
    except TimeoutError as exc:
        raise ProbeIncomplete(
            f"the program {shorten(path)} did not end its trial run within {seconds:g} s; {_KEPT}"
        ) from exc
    except (OSError, ValueError) as exc:
        raise ProbeIncomplete(
            f"the trial run of {shorten(path)} in a child process could not be started: "
            f"{command[0] or 'sys.executable is empty'}: {exc}. Set AIOEMBED_PYTHON to a Python "
            f"that has aioembed, or give the file's sha256 in a ModelSpec; {_KEPT}"
        ) from exc
    if child.returncode == 0:
        return
    if child.returncode == -signal.SIGKILL:
        raise ProbeIncomplete(
            f"the trial run of {shorten(path)} was killed, most likely as memory ran out; {_KEPT}"
        )
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
        InvalidProgram: It is not a program, or the runtime refused it.
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
    """Load a program, run `forward` twice on different inputs; return the child's exit code.

    A program whose vectors are all the same, zeros or not finite would load and be of no use.
    """
    try:
        program = Program.load(path)
        method = program.methods.get("forward")
        if method is not None:
            inputs = [[_trial_input(info, run) for info in method.inputs] for run in range(2)]
            first, second = (program.run(*tensors)[0] for tensors in inputs)
            if method.inputs and _kind(method.inputs[0]) is not None:
                _check_outputs(first, second, _kind(method.inputs[0]) or "")
    except AioembedError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads it
        return _TYPED_ERROR
    return 0


def _kind(info: TensorInfo) -> str | None:
    """What a program's first input is, judged by its dtype and number of axes."""
    if info.dtype == "float32" and len(info.shape) >= _IMAGE_AXES:
        return "pictures"
    return "texts" if info.dtype == "int64" else None


def _trial_input(info: TensorInfo, run: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Noise for pixels, and ids that every vocabulary has."""
    if info.dtype == "float32":
        return np.random.default_rng(run).random(info.shape, np.float32)
    return np.full(info.shape, run, info.dtype)


def _check_outputs(
    first: np.ndarray[Any, np.dtype[Any]], second: np.ndarray[Any, np.dtype[Any]], kind: str
) -> None:
    for output in (first, second):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InvalidProgram(f"the program's vectors of {kind} are NaN or infinite")
        if not output.any():
            raise InvalidProgram(f"the program's vectors of {kind} are all zeros")
    if kind == "pictures" and np.array_equal(first, second):
        raise InvalidProgram(
            "the program gives the same vector for two different pictures: it was not exported "
            "as it was meant, or its weights were not loaded"
        )
