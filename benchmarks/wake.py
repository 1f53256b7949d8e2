"""How long a model takes to load and to wake, and how processes share its weights' memory.

    python benchmarks/wake.py [--programs clip_fast_fp32 clip_fast_int8] [--processes 1 2 4]

For each program, with and without packed weights: the first load (which packs), a later load, and
a wake after sleep, from the call to its vector without the inference; on a busy machine compare
their CPU time. Then the anonymous, file-backed and proportional memory of each process, for several
processes with the same model and for workers of a server. Then both kinds in one process, by turns:
whether their vectors are equal to the bit, and the ratio of their latencies. The first lines are
the memory of a process before it loads a model, and with the embedded one. Every other figure comes
from its own process. Making the programs needs the [export] extra; the path of a `.pte` file is
accepted too.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from aioembed import ImageEmbeddings
from programs import program

_WAKES = 9
_TURNS = 100


def model(path: str, cache: str, *, packed: bool) -> ImageEmbeddings:
    return ImageEmbeddings(path, cache_dir=cache, packed_weights=packed)


async def load_time(path: str, cache: str, packed: bool) -> dict[str, float]:
    """Seconds of one load, without the trial run of a program without a published hash."""
    handle = model(path, cache, packed=packed)
    began = time.perf_counter()
    await handle.load()
    seconds = time.perf_counter() - began
    await handle.aclose()
    return {"load": seconds}


async def wake_time(path: str, cache: str, packed: bool) -> dict[str, float]:
    """Median seconds, and seconds of CPU time, from a call to its vector: awake, and asleep."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    taken: dict[str, list[float]] = {"awake": [], "awake_cpu": [], "asleep": [], "asleep_cpu": []}
    async with model(path, cache, packed=packed) as handle:
        await handle.forward(pixels)
        for _ in range(_WAKES):
            for kind in ("awake", "asleep"):
                if kind == "asleep":
                    await handle.sleep()
                began, cpu = time.perf_counter(), time.process_time()
                await handle.forward(pixels)
                taken[kind].append(time.perf_counter() - began)
                taken[f"{kind}_cpu"].append(time.process_time() - cpu)
    return {kind: float(np.median(seconds)) for kind, seconds in taken.items()}


async def compare(path: str, cache: str, _packed: bool) -> dict[str, float]:
    """How many vectors differ with packed weights, and the median ratio of latencies."""
    dice = np.random.default_rng(0)
    different, ratios = 0, []
    async with model(path, cache, packed=False) as plain, model(path, cache, packed=True) as packed:
        for turn in range(_TURNS):
            pixels = dice.integers(0, 256, (224, 224, 3), dtype=np.uint8)
            seconds, vectors = {}, {}
            for handle in (plain, packed) if turn % 2 else (packed, plain):
                began = time.perf_counter()
                vectors[handle] = await handle.forward(pixels)
                seconds[handle] = time.perf_counter() - began
            ratios.append(seconds[packed] / seconds[plain])
            different += not np.array_equal(vectors[plain], vectors[packed])
    return {"different": different, "ratio": float(np.median(ratios[_TURNS // 5 :]))}


async def bare(*_: object) -> dict[str, dict[str, float]]:
    """Memory of this process after the import, and with the embedded model."""
    imported = memory(os.getpid())
    async with ImageEmbeddings() as handle:
        await handle.forward(np.zeros((224, 224, 3), np.uint8))
        return {"imported": imported, "embedded": memory(os.getpid())}


async def hold(path: str, cache: str, packed: bool) -> None:
    """Load a model, use it, print a line, and keep it until stdin is closed."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    async with model(path, cache, packed=packed) as handle:
        await handle.forward(pixels)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


def memory(pid: int) -> dict[str, float]:
    """Megabytes of a process, as Linux counts them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines[1:]}
    rss, anonymous = fields["Rss"], fields["Anonymous"]
    return {"anonymous": anonymous, "file-backed": rss - anonymous, "proportional": fields["Pss"]}


def memory_of(count: int, *arguments: str) -> dict[str, float]:
    """Memory of each of several processes that hold the model at the same time, on average."""
    command = [sys.executable, __file__, "--child", "hold", *arguments]
    pipe = subprocess.PIPE
    holders = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(count)]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        each = [memory(holder.pid) for holder in holders]
        return {kind: sum(one[kind] for one in each) / count for kind in each[0]}
    finally:
        for holder in holders:
            holder.communicate()


def memory_of_workers(count: int, path: str, cache: str) -> dict[str, float]:
    """Memory of each worker of a server that has answered requests, on average."""
    import httpx
    import psutil
    from PIL import Image

    command = [sys.executable, "-m", "aioembed", "serve", "--port", "0", "--workers", str(count)]
    command += ["--model", path, "--cache-dir", cache, "--log-level", "error"]
    image = io.BytesIO()
    Image.new("RGB", (224, 224)).save(image, "PNG")
    body = {"input": base64.b64encode(image.getvalue()).decode()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(line for line in server.stderr if "serving on" in line).split()[-1]
            with ThreadPoolExecutor(8 * count) as clients:

                def ask(_: int) -> int:
                    return httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code

                while set(clients.map(ask, range(64 * count))) != {200}:
                    time.sleep(0.5)
            children = psutil.Process(server.pid).children()
            workers = [one.pid for one in children if "spawn_main" in " ".join(one.cmdline())]
            assert len(workers) == count
            each = [memory(pid) for pid in workers]
            return {kind: sum(one[kind] for one in each) / count for kind in each[0]}
        finally:
            server.terminate()


def shown(megabytes: dict[str, float]) -> str:
    return ", ".join(f"{kind} {size:.0f}" for kind, size in megabytes.items())


def in_child(kind: str, path: str = "", cache: str = "", packed: str = "") -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, path, cache, packed]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_child(kind: str, path: str, cache: str, packed: str) -> None:
    measures: dict[str, Callable[..., Awaitable[Any]]]
    measures = {"load": load_time, "wake": wake_time, "compare": compare, "bare": bare}
    if kind == "hold":
        anyio.run(hold, path, cache, packed == "packed")
    else:
        print(json.dumps(anyio.run(measures[kind], path, cache, packed == "packed")))


def measure(path: str, cache: str, packed: str, processes: list[int]) -> None:
    in_child("load", path, cache, "plain")  # its trial run
    first, *later = (in_child("load", path, cache, packed)["load"] for _ in range(4))
    woken = in_child("wake", path, cache, packed)
    wake, cpu = (woken[f"asleep{kind}"] - woken[f"awake{kind}"] for kind in ("", "_cpu"))
    print(
        f"{Path(path).stem}, {packed}: first load {first:.3f} s, later {min(later):.3f} s; a wake "
        f"takes {wake * 1e3:.1f} ms ({cpu * 1e3:.1f} of CPU time) beyond inference "
        f"({woken['awake'] * 1e3:.1f} ms)",
        flush=True,
    )
    for count in processes:
        megabytes = shown(memory_of(count, path, cache, packed))
        print(f"  {count} processes, MB each: {megabytes}", flush=True)
        if packed == "packed":
            megabytes = shown(memory_of_workers(count, path, cache))
            print(f"  {count} workers of a server, MB each: {megabytes}", flush=True)
    if packed == "packed":
        both = in_child("compare", path, cache)
        print(
            f"  {both['different']:.0f} of {_TURNS} vectors differ from those without packed "
            f"weights; latency {both['ratio']:.3f} of that without",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", nargs="+", default=["clip_fast_fp32", "clip_fast_int8"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--child", nargs=4)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    for when, megabytes in in_child("bare").items():
        print(f"{when}, MB: {shown(megabytes)}")
    for name in options.programs:
        path = name if name.endswith(".pte") else str(program(name))
        for packed in ("plain", "packed"):
            with tempfile.TemporaryDirectory() as cache:
                measure(path, cache, packed, options.processes)


if __name__ == "__main__":
    main()
