"""A loaded ExecuTorch program."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import (
    ExecutorchError,
    InvalidConfig,
    InvalidProgram,
    ModelClosed,
    ModelError,
    ModelFileUnreadable,
    ProgramLost,
    UnexpectedNumInputs,
    WrongDimensions,
    shorten,
)
from ._extension import load_failure
from ._extension import native as _native
from ._file import check_program_file
from ._log import forward_log
from ._threads import NICENESS, use_pool, wants_single_thread

__all__ = ["EXECUTORCH_VERSION", "Constant", "MethodInfo", "Program", "TensorInfo", "backends"]

Array: TypeAlias = npt.NDArray[Any]
Scalar: TypeAlias = bool | int | float | str
Constant: TypeAlias = Scalar | Array | list[Scalar | Array]
"""What a constant method holds. A list of one value comes back as that value: the format does
not tell them apart."""

EXECUTORCH_VERSION: str = "none" if load_failure() else _native.EXECUTORCH_VERSION
"""Version of the ExecuTorch libraries that were built in; `none` where they cannot be loaded."""

_LONGEST_PACKED = 255
_SHOWN_LINES = 3
_LOST = "load the program again; if this is repeated, its file is damaged"
_HINTS = {
    "OperatorMissing": "the program uses an operator that the CPU runtime does not have; "
    "export it through the XNNPACK partitioner",
    "NotFound": "the program uses a backend that is not built in, or data from another file",
    "MemoryAllocationFailed": "there is not enough memory, or the file is damaged",
    "DelegateInvalidCompatibility": "the program was exported for another version of the runtime",
    "InvalidExternalData": "the program needs a data file (.ptd), which is not supported",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a method.

    Attributes:
        shape: Size of each axis. Upper bounds where `dynamic`.
        dtype: Numpy's name, such as `float32` or `int64`.
        dynamic: Whether smaller sizes are taken. The format records neither which axes vary nor
            their lower bounds; the runtime refuses a size it cannot work with.
    """

    shape: tuple[int, ...]
    dtype: str
    dynamic: bool = False

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape can be this tensor."""
        if not self.dynamic:
            return tuple(shape) == self.shape
        return len(shape) == len(self.shape) and all(
            0 < size <= bound for size, bound in zip(shape, self.shape, strict=True)
        )

    def __str__(self) -> str:
        """The dtype and shape, as in `float32 (1, 3, 224, 224)`; `<=16` is an upper bound."""
        mark = "<=" if self.dynamic else ""
        sizes = ", ".join(f"{mark}{size}" for size in self.shape)
        return f"{self.dtype} ({sizes}{',' if len(self.shape) == 1 else ''})"


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A method of a program.

    Attributes:
        name: Such as `forward`.
        inputs: In order.
        outputs: In order.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Program:
    """A program that is loaded and can be run; make one with `Program.load`.

    It computes on its own thread, one run after the other. There are two ways to ask for one:
    `run` waits for the result; `start` does not, and makes `completion_fd` readable when the
    result is there for `collect`. `start` and `collect` are for one owner, which awaits one result
    at a time; `run` may be called from any thread, also meanwhile.

    Attributes:
        path: Of the file. It is memory-mapped: replace it by renaming, never write into it.
        methods: What can be run, by name.
        constants: What the constant methods hold, by name.
    """

    path: Path
    methods: Mapping[str, MethodInfo]
    constants: Mapping[str, Constant]

    def __init__(self, path: Path, native: _native.Program) -> None:
        self.path = path
        self._process = os.getpid()
        self.methods = MappingProxyType({method.name: method for method in _describe(native)})
        self.constants = MappingProxyType(
            {
                name: values[0] if len(values) == 1 else values
                for name, values in native.take_constants().items()
            }
        )
        # A program that is still alive when the interpreter exits is freed then, while its thread
        # can still be waited for, whoever refers to this object.
        self._natives = [native]
        weakref.finalize(self, self._natives.clear)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        packed_weights: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Map a program's file, verify it and load all its methods. Blocks: use a worker thread.

        Args:
            path: Of a `.pte` file.
            threads: 1 runs the program on its own thread alone, so that several programs can run
                beside each other. None or `thread_count()` uses the pool that all such programs
                share; no other count can be had.
            packed_weights: File that XNNPACK keeps the packed weights in: where it is empty or
                absent they are written into it, otherwise it is mapped in place of memory. XNNPACK
                notices no damage in it. No other program of the process may use this path at the
                same time, or the two run one at a time.

        Raises:
            ModelFileUnreadable: The file is missing or cannot be opened.
            InvalidProgram: The file is not a program, or a damaged one.
            ExecutorchError: The runtime refused the program.
            InvalidConfig: The number of threads cannot be had, or the path of the packed weights
                is longer than 255 bytes.
        """
        single_thread = wants_single_thread(threads)
        packed = b"" if packed_weights is None else os.fsencode(packed_weights)
        if len(packed) > _LONGEST_PACKED:
            raise InvalidConfig(f"{shorten(packed_weights)}: at most 255 bytes can be the path")
        check_program_file(path)
        if not single_thread:
            use_pool()
        location = Path(path)
        with _translated(location):
            native = _native.Program(
                os.fsencode(location),
                single_thread=single_thread,
                packed_weights=packed,
                niceness=NICENESS,
            )
        return cls(location, native)

    def run(self, *inputs: Array, method: str = "forward") -> tuple[Array, ...]:
        """Run a method. Blocks with the GIL released: use a worker thread.

        Args:
            *inputs: One C-contiguous array per input, of the dtype and shape in `methods`. They
                are not to be written to meanwhile.
            method: Which one.

        Returns:
            One new array per output.

        Raises:
            UnexpectedNumInputs: Another number of inputs than the method has.
            WrongDimensions: An input has another dtype, shape or memory layout.
            InvalidConfig: There is no such method, or the process was forked after the load.
            ModelClosed: The program was closed.
            ProgramLost: The runtime dropped the program, in this run or an earlier one.
            ExecutorchError: The runtime failed; the program can still be used.
        """
        native = self._usable()
        _check_inputs(self._method(method), inputs)
        with _translated(self.path):
            return tuple(native.run(method, list(inputs)))

    def start(self, *inputs: Array, method: str = "forward") -> None:
        """Queue a run of a method and return immediately.

        The result of an earlier start that was not collected is dropped, and so is one that
        nobody has collected when the program is closed.

        Args:
            *inputs: As for `run`. They are kept until the run has ended.
            method: Which one.

        Raises:
            UnexpectedNumInputs: Another number of inputs than the method has.
            WrongDimensions: An input has another dtype, shape or memory layout.
            InvalidConfig: There is no such method, or the process was forked after the load.
            ModelClosed: The program was closed.
        """
        native = self._usable()
        _check_inputs(self._method(method), inputs)
        with _translated(self.path):
            native.start(method, list(inputs))

    @property
    def completion_fd(self) -> int:
        """File descriptor that is readable when the run that was started last has ended.

        It stays the same for the program's whole life, and open after `close()` for as long as
        this object exists. Wait for it, as with `anyio.wait_readable`, and never read it:
        `collect()` does.

        Raises:
            InvalidConfig: The process was forked after the load.
        """
        return self._usable().completion_fd()

    def collect(self) -> tuple[Array, ...]:
        """Return the result of the run that was started last, once.

        Blocks, with the GIL released, until the run has ended; not after `completion_fd` was
        readable.

        Returns:
            One new array per output.

        Raises:
            InvalidConfig: Nothing was started since the last call, or the process was forked after
                the load.
            ModelClosed: The program was closed before the run began.
            ProgramLost: The runtime dropped the program, in this run or an earlier one.
            ExecutorchError: The runtime failed; the program can still be used.
        """
        native = self._usable()
        with _translated(self.path):
            return tuple(native.collect())

    def close(self) -> None:
        """Free the program's memory, after the run in progress. Blocks; idempotent.

        Runs that are queued end with `ModelClosed`. In a forked child it does nothing.
        """
        for native in self._natives:
            native.close()
        forward_log()

    def _usable(self) -> _native.Program:
        if os.getpid() != self._process:
            raise InvalidConfig(
                f"{shorten(self.path)} was loaded before this process was forked, and its "
                "threads stayed behind; load it in this process"
            )
        if not self._natives:
            raise ModelClosed(f"{shorten(self.path)} was closed when the interpreter exited")
        return self._natives[0]

    def _method(self, name: str) -> MethodInfo:
        try:
            return self.methods[name]
        except KeyError as exc:
            raise InvalidConfig(
                f"{shorten(self.path)} has no method {name!r}; it has {', '.join(self.methods)}"
            ) from exc


def backends() -> tuple[str, ...]:
    """Return the names of the backends that are built in, such as `XnnpackBackend`."""
    return tuple(_native.backends())


def _describe(native: _native.Program) -> Iterator[MethodInfo]:
    for name, inputs, outputs in native.describe():
        yield MethodInfo(name, _tensors(inputs), _tensors(outputs))


def _tensors(described: Sequence[tuple[Sequence[int], str, bool]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(tuple(shape), dtype, dynamic) for shape, dtype, dynamic in described)


def _check_inputs(method: MethodInfo, inputs: Sequence[Array]) -> None:
    if len(inputs) != len(method.inputs):
        raise UnexpectedNumInputs(
            f"{method.name} takes {len(method.inputs)} inputs "
            f"({'; '.join(map(str, method.inputs))}), got {len(inputs)}"
        )
    for index, (array, wanted) in enumerate(zip(inputs, method.inputs, strict=True)):
        problem = _mismatch(array, wanted)
        if problem:
            raise WrongDimensions(
                f"{method.name}: input {index} is {problem}, and must be {wanted}, C-contiguous"
            )


def _mismatch(array: object, wanted: TensorInfo) -> str | None:
    if not isinstance(array, np.ndarray):
        return f"of type {type(array).__name__}"
    if array.dtype != np.dtype(wanted.dtype) or not wanted.accepts(array.shape):
        return f"{array.dtype} {array.shape}"
    return None if array.flags.c_contiguous else f"{array.dtype} {array.shape}, not C-contiguous"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the native module's exceptions into ours, and pass its log on."""
    try:
        yield
    except _native.ProgramClosed as exc:
        raise ModelClosed(f"{shorten(path)} is closed; load it again") from exc
    except _native.NothingStarted as exc:
        raise InvalidConfig(f"no run of {shorten(path)} was started: call start() first") from exc
    except _native.RuntimeFailure as exc:
        raise _typed(path, *exc.args) from exc
    finally:
        forward_log()


def _typed(  # noqa: PLR0917  # as the native module raises it
    path: Path, code: int, name: str, doing: str, log: Sequence[str], is_lost: bool
) -> ModelError:
    hint = _LOST if is_lost else _HINTS.get(name)
    text = f"{shorten(path)}: {doing} failed: {name} ({code})"
    text += f"; {hint}" if hint else ""
    text += f" [{'; '.join(log[:_SHOWN_LINES])}]" if log else ""
    if is_lost:
        return ProgramLost(text, code=code, name=name, log=tuple(log))
    if name == "InvalidProgram":
        return InvalidProgram(f"{text}; the file is damaged: fetch or export it again")
    if name == "AccessFailed":
        return ModelFileUnreadable(text)
    return ExecutorchError(text, code=code, name=name, log=tuple(log))
