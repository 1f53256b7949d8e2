"""How long a model takes to load and to wake, and whose memory its weights are.

    python benchmarks/wake.py [--programs clip_fast_fp32 clip_fast_int8] [--processes 1 2 4]

For each program, with and without packed weights: the first load (which packs), a later load, and
a wake after sleep, from the call to its vector beyond what inference takes. Then processes with
the same model loaded: anonymous, file-backed and proportional memory of each. Every figure comes
from its own process. Making the programs needs the [export] extra; a path of a `.pte` file
is taken too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import numpy as np

from aioembed import ImageEmbeddings
from programs import program

_ROUNDS = 5


def model(path: str, cache: str, *, packed: bool, idle_timeout: float | None) -> ImageEmbeddings:
    return ImageEmbeddings(path, cache_dir=cache, packed_weights=packed, idle_timeout=idle_timeout)


async def load_time(path: str, cache: str, packed: bool) -> dict[str, float]:
    """Seconds of one load, without the trial run of a program of unknown origin."""
    handle = model(path, cache, packed=packed, idle_timeout=None)
    began = time.perf_counter()
    await handle.load()
    seconds = time.perf_counter() - began
    await handle.aclose()
    return {"load": seconds}


async def wake_time(path: str, cache: str, packed: bool) -> dict[str, float]:
    """Median seconds from a call of a sleeping model to its vector, beyond those of inference."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    awake, asleep = [], []
    async with model(path, cache, packed=packed, idle_timeout=0.5) as handle:
        await handle.forward(pixels)
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            await handle.forward(pixels)
            awake.append(time.perf_counter() - began)
            await handle.wait_for(lambda state: state.is_asleep)
            await anyio.sleep(0.2)
            began = time.perf_counter()
            await handle.forward(pixels)
            asleep.append(time.perf_counter() - began)
    return {"inference": float(np.median(awake)), "wake": float(np.median(asleep))}


async def hold(path: str, cache: str, packed: bool) -> None:
    """Load a model, use it, say so, and keep it until stdin is closed."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    async with model(path, cache, packed=packed, idle_timeout=None) as handle:
        await handle.forward(pixels)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


def memory(pid: int) -> dict[str, float]:
    """Megabytes of a process, as Linux counts them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines[1:]}
    rss, anonymous = fields["Rss"], fields["Anonymous"]
    return {"anonymous": anonymous, "file": rss - anonymous, "proportional": fields["Pss"]}


def child(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], check=True, capture_output=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def memory_of(count: int, *arguments: str) -> list[dict[str, float]]:
    """Memory of each of several processes that hold the model at the same time."""
    command = [sys.executable, __file__, "--child", "hold", *arguments]
    pipe = subprocess.PIPE
    holders = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(count)]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        return [memory(holder.pid) for holder in holders]
    finally:
        for holder in holders:
            holder.communicate()


def run_child(kind: str, path: str, cache: str, packed: str) -> None:
    if kind == "hold":
        anyio.run(hold, path, cache, packed == "packed")
        return
    measure = {"load": load_time, "wake": wake_time}[kind]
    print(json.dumps(anyio.run(measure, path, cache, packed == "packed")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", nargs="+", default=["clip_fast_fp32", "clip_fast_int8"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--child", nargs=4)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    for name in options.programs:
        path = name if name.endswith(".pte") else str(program(name))
        for packed in ("plain", "packed"):
            with tempfile.TemporaryDirectory() as cache:
                child("load", path, cache, "plain")  # its trial run
                loads = [child("load", path, cache, packed)["load"] for _ in range(3)]
                woken = child("wake", path, cache, packed)
                print(
                    f"{Path(path).stem}, {packed}: first load {loads[0]:.3f} s, "
                    f"later {min(loads[1:]):.3f} s; a wake takes "
                    f"{(woken['wake'] - woken['inference']) * 1e3:.1f} ms beyond inference "
                    f"({woken['inference'] * 1e3:.1f} ms)",
                    flush=True,
                )
                for count in options.processes:
                    each = memory_of(count, path, cache, packed)
                    means = {key: sum(one[key] for one in each) / count for key in each[0]}
                    print(
                        f"  {count} processes, MB each: anonymous {means['anonymous']:.0f}, "
                        f"file-backed {means['file']:.0f}, "
                        f"proportional {means['proportional']:.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
