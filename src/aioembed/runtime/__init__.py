"""The ExecuTorch runtime: programs in, arrays out.

Everything that waits here blocks its thread with the GIL released: call it from a worker thread.
The runtime knows nothing of images or text.
"""

from __future__ import annotations

from .._cpus import available_cpus
from ._extension import load_failure
from ._file import check_program_file, operators_outside
from ._threads import set_thread_count, thread_count
from .program import (
    EXECUTORCH_VERSION,
    Constant,
    MethodInfo,
    Program,
    TensorInfo,
    backends,
)

__all__ = [
    "EXECUTORCH_VERSION",
    "Constant",
    "MethodInfo",
    "Program",
    "TensorInfo",
    "available_cpus",
    "backends",
    "check_program_file",
    "load_failure",
    "operators_outside",
    "set_thread_count",
    "thread_count",
]
