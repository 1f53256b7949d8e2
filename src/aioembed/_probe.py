"""A trial run of a program of unknown origin, in a child process that may die."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from ._child import python_child
from ._local_file import LocalFile
from ._tasks import BlockingCall
from .errors import (
    AioembedError,
    InvalidProgram,
    ProbeFailed,
    ProbeIncomplete,
    shorten,
)
from .runtime import EXECUTORCH_VERSION, MethodInfo, Program, TensorInfo, check_program_file

__all__ = ["probe", "probe_once"]

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


async def probe_once(file: LocalFile) -> None:
    """Give a program on this machine whose hash is not published its trial run, once.

    Raises:
        ModelFileUnreadable: There is no such file, or it cannot be read.
        InvalidProgram: It is not a program, or the runtime refused it.
        ProbeFailed: The child crashed, or took too long.
    """
    if not await BlockingCall(partial(_was_tried, file)).run():
        await probe(file.path)
        await BlockingCall(partial(file.mark_tried, EXECUTORCH_VERSION)).run()


def _was_tried(file: LocalFile) -> bool:
    check_program_file(file.path)
    return file.was_tried(EXECUTORCH_VERSION)


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
            inputs = [
                [_trial_input(method, index, run) for index in range(len(method.inputs))]
                for run in range(2)
            ]
            first, second = (program.run(*tensors) for tensors in inputs)
            if method.inputs and (kind := _kind(method.inputs[0])):
                _check_outputs(first, second, kind)
    except AioembedError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads it
        return _TYPED_ERROR
    return 0


def _kind(info: TensorInfo) -> str | None:
    """What a program's first input is, judged by its dtype and number of axes."""
    if info.dtype == "float32" and len(info.shape) >= _IMAGE_AXES:
        return "pictures"
    return "texts" if info.dtype == "int64" else None


def _trial_input(method: MethodInfo, index: int, run: int) -> NDArray[Any]:
    """Noise for pixels, ids that every vocabulary has, and a mask of ones."""
    info = method.inputs[index]
    if info.dtype == "float32":
        return np.random.default_rng(run).random(info.shape, np.float32)
    return np.full(info.shape, 1 if index else run, info.dtype)


def _check_outputs(
    first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]], kind: str
) -> None:
    for outputs in (first, second):
        if not all(np.isfinite(one).all() for one in outputs if one.dtype.kind == "f"):
            raise InvalidProgram(f"the program's vectors of {kind} are NaN or infinite")
        if not any(one.any() for one in outputs):
            raise InvalidProgram(f"the program's vectors of {kind} are all zeros")
    if all(np.array_equal(one, other) for one, other in zip(first, second, strict=True)):
        raise InvalidProgram(
            f"the program gives the same vector for two different {kind}: it was not exported "
            "as it was meant, or its weights were not loaded"
        )
