"""CLIP's latency and memory here and in other runtimes, on the same weights in one run.

    python benchmarks/latency.py [--tower image|text] [--rounds 15] [--only NAME ...]

Every contender runs in a process of its own, with as many threads as there are CPUs; they take
turns, so that what the machine does besides disturbs all alike. Figures are medians over the
rounds; ratios are to ONNX Runtime fp32. Memory is the process's resident set after the runs, and
the part of it that is not backed by files.

The weights are seeded and random: time and memory do not depend on them. Models are made once and
kept in `AIOEMBED_BENCH_DIR` (or a folder in the system's temporary one). Needs the [export]
extra, and `pip install onnx onnxruntime onnxscript openvino nncf` for the peers; those that are
missing are left out. The int8 peers are quantised by their own tools: ONNX Runtime's dynamic (per
channel) and static (QDQ, per channel, calibrated), and OpenVINO's NNCF (for transformers).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from programs import folder

if TYPE_CHECKING:
    import torch

SEED = 20230131
LENGTHS = {"image": (0,), "text": (16, 77)}
WARM_UP = 3
Run = Callable[[], object]

IMAGE = {
    "aioembed fp32": "pte",
    "aioembed int8": "pte",
    "aioembed fp32, handle": "handle",
    "aioembed int8, handle": "handle",
    "stock binding, plain export fp32": "stock",
    "ONNX Runtime fp32": "onnx",
    "ONNX Runtime int8 dynamic": "onnx",
    "ONNX Runtime int8 static": "onnx",
    "OpenVINO fp32": "openvino",
    "OpenVINO bf16": "openvino",
    "OpenVINO int8": "openvino",
    "torch eager": "torch",
    "torch.compile": "torch",
}
TEXT = {name: kind for name, kind in IMAGE.items() if kind in {"pte", "onnx", "openvino", "torch"}}
TEXT = {name: kind for name, kind in TEXT.items() if "static" not in name}


def checkpoint() -> Path:
    path = folder() / "clip-vit-base-patch32"
    if not (path / "config.json").is_file():
        import torch
        from transformers import CLIPConfig, CLIPModel

        torch.manual_seed(SEED)
        CLIPModel(CLIPConfig()).save_pretrained(path)
    return path


def inputs(tower: str, length: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return transformers' inputs."""
    random = np.random.default_rng(0)
    if tower == "image":
        return {"pixel_values": random.standard_normal((1, 3, 224, 224), np.float32)}
    ids = np.concatenate([[49406], random.integers(0, 49406, length - 2), [49407]])
    return {"input_ids": ids[np.newaxis]}


def torch_tower(tower: str) -> torch.nn.Module:
    """Return transformers' tower with the division by the length, for tensors."""
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = (
                CLIPVisionModelWithProjection if tower == "image" else CLIPTextModelWithProjection
            )
            self.model = kind.from_pretrained(checkpoint()).train(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            vectors = self.model(x)[0]
            return torch.nn.functional.normalize(vectors, dim=-1)

    return Tower().train(False)


# Models, each made in a process of its own


def model(name: str, tower: str) -> Path:
    """Return the path of a contender's model, made if it is not there yet."""
    stem = f"{tower}-{name.lower().replace(' ', '-').replace(',', '')}"
    kind = IMAGE[name]
    if kind in {"pte", "handle"}:
        path = folder() / f"clip-{tower}-{'int8' if 'int8' in name else 'fp32'}.pte"
        make: Callable[[Path], None] = lambda out: make_pte(out, tower, name)  # noqa: E731
    elif kind == "stock":
        path = folder() / f"{stem}.pte"
        make = lambda out: make_plain(out, tower)  # noqa: E731
    elif name == "ONNX Runtime fp32" or kind == "openvino":
        path = folder() / f"clip-{tower}.onnx"
        make = lambda out: make_onnx(out, tower)  # noqa: E731
    else:
        path = folder() / f"{stem}.onnx"
        make = lambda out: quantize_onnx(out, tower, name)  # noqa: E731
    if kind == "openvino" and "int8" in name:
        source, path = path, folder() / f"clip-{tower}-openvino-int8.xml"
        if not path.exists() and source.exists():
            quantize_openvino(source, path, tower)
            return path
    if not path.exists():
        make(path)
    return path


def make_pte(out: Path, tower: str, name: str) -> None:
    from aioembed.export.clip import ClipOptions, export_clip

    precision: Any = "int8" if "int8" in name else "fp32"
    chosen: Any = tower
    report = export_clip(checkpoint(), out, ClipOptions(tower=chosen, precision=precision))
    print(report, file=sys.stderr)


def make_plain(out: Path, tower: str) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = tuple(torch.from_numpy(array) for array in inputs(tower, 16).values())
    with torch.no_grad():
        exported = torch.export.export(torch_tower(tower), example)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    out.write_bytes(edge.to_executorch().buffer)


def make_onnx(out: Path, tower: str) -> None:
    import torch

    ((name, array),) = inputs(tower, 16).items()
    dynamic = ({1: torch.export.Dim("tokens", min=2, max=77)},) if tower == "text" else None
    torch.onnx.export(
        torch_tower(tower),
        (torch.from_numpy(array),),
        str(out),
        input_names=[name],
        dynamo=True,
        dynamic_shapes=dynamic,
        external_data=False,
    )


def samples(tower: str, count: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    for index in range(count):
        given = inputs(tower, 16)
        yield {name: np.roll(array, index, -1) for name, array in given.items()}


def quantize_onnx(out: Path, tower: str, name: str) -> None:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = samples(tower, 4)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.samples, None)

    source, prepared = model("ONNX Runtime fp32", tower), out.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    if "static" in name:
        q.quantize_static(str(prepared), str(out), Reader(), per_channel=True)
    else:
        q.quantize_dynamic(str(prepared), str(out), per_channel=True)
    prepared.unlink()


def quantize_openvino(source: Path, out: Path, tower: str) -> None:
    import nncf
    import openvino

    given = [next(iter(sample.values())) for sample in samples(tower, 4)]
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(given),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given),
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


# Runners


def pte_runner(path: Path, tower: str, length: int) -> Run:
    from aioembed.runtime import Program

    program = Program.load(path)
    if tower == "image":
        x: Any = np.random.default_rng(0).random((1, 49, 3072), np.float32)
    else:
        x = inputs(tower, length)["input_ids"]
    return lambda: program.run(x)[0]


@contextlib.contextmanager
def handle_runner(path: Path) -> Iterator[Run]:
    import anyio.from_thread

    from aioembed import ImageEmbeddings

    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    with anyio.from_thread.start_blocking_portal() as portal:
        handle = ImageEmbeddings(str(path))
        with portal.wrap_async_context_manager(handle):
            portal.call(handle.load)

            async def timed() -> float:
                start = time.perf_counter()
                await handle.forward(picture)
                return time.perf_counter() - start

            yield lambda: portal.call(timed)


def stock_runner(path: Path, tower: str, length: int) -> Run:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    x = [torch.from_numpy(array) for array in inputs(tower, length).values()]
    return lambda: method.execute(x)


def onnx_runner(path: Path, tower: str, length: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = inputs(tower, length)
    return lambda: session.run(None, given)


def openvino_runner(path: Path, tower: str, length: int, name: str) -> Run:
    import openvino

    hint = "bf16" if "bf16" in name else "f32"
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    given = list(inputs(tower, length).values())
    return lambda: compiled(given)


def torch_runner(name: str, tower: str, length: int) -> Run:
    import torch

    tower_module = torch_tower(tower)
    run = torch.compile(tower_module) if "compile" in name else tower_module
    (x,) = (torch.from_numpy(array) for array in inputs(tower, length).values())

    def forward() -> object:
        with torch.no_grad():
            return run(x)

    return forward


@contextlib.contextmanager
def runner(name: str, tower: str, length: int) -> Iterator[Run]:
    kind = IMAGE[name]
    if kind == "handle":
        with handle_runner(model(name, tower)) as run:
            yield run
    elif kind == "torch":
        yield torch_runner(name, tower, length)
    elif kind == "openvino":
        yield openvino_runner(model(name, tower), tower, length, name)
    else:
        runners = {"pte": pte_runner, "stock": stock_runner, "onnx": onnx_runner}
        yield runners[kind](model(name, tower), tower, length)


def memory() -> tuple[float, float]:
    """Return resident and anonymous memory of this process, in MB."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, value, *_ = line.split()
        sizes[key] = int(value) / 1e3
    return sizes["Rss:"], sizes["Anonymous:"]


def contend(name: str, tower: str, length: int) -> None:
    """Serve a contender: a line on stdin is a request for that many runs."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with runner(name, tower, length) as run:
        for _ in range(WARM_UP):
            run()
        print("ready", file=answers)
        for line in sys.stdin:
            times = []
            for _ in range(int(line)):
                start = time.perf_counter()
                result = run()
                elapsed = time.perf_counter() - start
                times.append(result if isinstance(result, float) else elapsed)
            print(json.dumps({"times": times, "memory": memory()}), file=answers)


def start(name: str, tower: str, length: int) -> subprocess.Popen[str] | None:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--contend", name, tower, str(length)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    if child.stdout.readline().strip() == "ready":
        return child
    _, errors = child.communicate()
    print(f"left out: {name}: {(errors.strip().splitlines() or ['?'])[-1]}", flush=True)
    return None


def compare(names: list[str], tower: str, length: int, rounds: int) -> None:
    for name in names:  # models first, so that nothing is made beside a loaded contender
        if IMAGE[name] != "torch":
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--make", name, tower],
                    check=True,
                    capture_output=True,
                )
    children = {name: child for name in names if (child := start(name, tower, length))}
    times: dict[str, list[float]] = {name: [] for name in children}
    sizes: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, child in children.items():
            assert child.stdin
            assert child.stdout
            child.stdin.write("3\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            times[name] += answer["times"]
            sizes[name] = answer["memory"]
    for child in children.values():
        child.communicate()
    base = statistics.median(times.get("ONNX Runtime fp32") or [float("nan")])
    print(f"\n{tower}{f', {length} tokens' if length else ''}; load {os.getloadavg()[0]:.1f}")
    print("| | median ms | fastest ms | to ONNX Runtime fp32 | RSS MB | anonymous MB |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        resident, anonymous = sizes[name]
        print(
            f"| {name} | {middle * 1e3:.1f} | {min(seconds) * 1e3:.1f} | {middle / base:.2f} "
            f"| {resident:.0f} | {anonymous:.0f} |",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--contend"]:
        return contend(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if sys.argv[1:2] == ["--make"]:
        checkpoint()
        model(sys.argv[2], sys.argv[3])
        return None
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", choices=["image", "text"], default="image")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="names of contenders")
    options = parser.parse_args()
    folder().mkdir(parents=True, exist_ok=True)
    everyone = IMAGE if options.tower == "image" else TEXT
    names = [name for name in everyone if not options.only or name in options.only]
    for length in LENGTHS[options.tower]:
        compare(names, options.tower, length, options.rounds)
    return None


if __name__ == "__main__":
    main()
