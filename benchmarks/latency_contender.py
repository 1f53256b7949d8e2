"""One contender of `latency.py`, in a process that imports little besides it.

    python benchmarks/latency_contender.py KIND NAME MODEL INPUT

Prints its vector of the input, then answers each line on stdin, a number of runs, with the times
of those runs in seconds and the memory of the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARM_UP = 3
Run = Callable[[], Any]


class Timed(NamedTuple):
    """A result that says itself how long it took."""

    seconds: float
    vector: Any


def pte_runner(path: str, given: np.ndarray[Any, Any]) -> Run:
    from aioembed.runtime import Program

    program = Program.load(path)
    x = given
    if x.dtype == np.uint8:
        _, count, values = program.methods["forward"].inputs[0].shape
        side, patch = math.isqrt(count), math.isqrt(values // 3)
        grid = np.float32(x / 255).reshape(side, patch, side, patch, 3).transpose(0, 2, 1, 3, 4)
        x = np.ascontiguousarray(grid).reshape(1, count, values)
    return lambda: program.run(x)[0]


@contextlib.contextmanager
def handle_runner(path: str, picture_or_text: np.ndarray[Any, Any]) -> Iterator[Run]:
    import anyio.from_thread

    from aioembed import ImageEmbeddings, TextEmbeddings
    from latency_models import checkpoint

    handle: Any = ImageEmbeddings(path)
    given: Any = picture_or_text
    if picture_or_text.dtype.kind == "U":
        handle = TextEmbeddings(path, tokenizer=checkpoint() / "tokenizer.json")
        given = picture_or_text.item()
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(handle),
    ):
        portal.call(handle.load)

        async def timed() -> Timed:
            start = time.perf_counter()
            vector = await handle.forward(given)
            return Timed(time.perf_counter() - start, vector)

        yield lambda: portal.call(timed)


def stock_runner(path: str, given: np.ndarray[Any, Any]) -> Run:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    x = [torch.from_numpy(given)]
    return lambda: method.execute(x)


def onnx_runner(path: str, given: np.ndarray[Any, Any]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: given}
    return lambda: session.run(None, feed)


def openvino_runner(path: str, given: np.ndarray[Any, Any], name: str) -> Run:
    import openvino

    hint = "bf16" if "bf16" in name else "f32"
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda: compiled([given])


def torch_runner(path: str, given: np.ndarray[Any, Any], name: str) -> Run:
    import torch

    from latency_models import torch_tower

    tower_module = torch_tower("text" if given.dtype == np.int64 else "image", Path(path))
    run = torch.compile(tower_module) if "compile" in name else tower_module
    x = torch.from_numpy(given)

    def forward() -> object:
        with torch.no_grad():
            return run(x)

    return forward


@contextlib.contextmanager
def runner(kind: str, name: str, path: str, given: np.ndarray[Any, Any]) -> Iterator[Run]:
    if kind == "handle":
        with handle_runner(path, given) as run:
            yield run
    elif kind == "torch":
        yield torch_runner(path, given, name)
    elif kind == "openvino":
        yield openvino_runner(path, given, name)
    else:
        runners = {"pte": pte_runner, "stock": stock_runner, "onnx": onnx_runner}
        yield runners[kind](path, given)


def memory() -> tuple[float, float]:
    """Return resident and anonymous memory of this process, in MB."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, value, *_ = line.split()
        sizes[key] = int(value) * 1024 / 1e6
    return sizes["Rss:"], sizes["Anonymous:"]


def main() -> None:
    kind, name, path, file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with runner(kind, name, path, np.load(file)) as run:
        result = [run() for _ in range(WARM_UP)][-1]
        vector = result.vector if isinstance(result, Timed) else result
        vector = np.asarray(vector if isinstance(vector, np.ndarray) else vector[0], np.float64)
        print(json.dumps(vector.reshape(-1).tolist()), file=answers)
        for line in sys.stdin:
            times = []
            for _ in range(int(line)):
                start = time.perf_counter()
                result = run()
                elapsed = time.perf_counter() - start
                times.append(result.seconds if isinstance(result, Timed) else elapsed)
            print(json.dumps({"times": times, "memory": memory()}), file=answers)


if __name__ == "__main__":
    main()
