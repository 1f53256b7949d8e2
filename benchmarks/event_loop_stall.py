"""How long the event loop stalls while images are embedded.

    python benchmarks/event_loop_stall.py [--images 60] [--rounds 3]

A heartbeat asks to be woken every millisecond; a stall is how much later than that it is. The
same program of CLIP's size runs through this library's runtime and through the stock binding
(`executorch.runtime`), each in its own process, by turns. `floor` is the machine's share in
it: the same heartbeat in a process that does nothing else, while other processes keep every CPU
busy.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from programs import INPUT_SHAPES, program

NAME = "clip_image_fp32"
PERIOD = 0.001
RUNTIMES = ("aioembed", "stock", "floor")
FLOOR_SECONDS_PER_IMAGE = 0.1


def embedder(runtime: str, path: Path) -> Callable[[], object]:
    """Return what embeds one image, blocking."""
    if runtime == "floor":
        spin = [sys.executable, "-c", "while True: pass"]
        for _ in range(os.cpu_count() or 1):
            atexit.register(subprocess.Popen(spin).kill)
        return lambda: time.sleep(FLOOR_SECONDS_PER_IMAGE)
    if runtime == "aioembed":
        import numpy as np

        from aioembed.runtime import Program

        loaded = Program.load(path)
        pixels = np.random.default_rng(0).random(INPUT_SHAPES[NAME], dtype=np.float32)
        return lambda: loaded.run(pixels)
    import torch
    from executorch.runtime import Runtime

    forward = Runtime.get().load_program(path).load_method("forward")
    assert forward is not None
    tensor = torch.rand(INPUT_SHAPES[NAME])
    return lambda: forward.execute([tensor])


async def heartbeat(stalls: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PERIOD)
        stalls.append((time.perf_counter() - before - PERIOD) * 1e3)


async def measure(embed: Callable[[], object], images: int) -> dict[str, float]:
    from anyio import to_thread

    await to_thread.run_sync(embed)
    stalls: list[float] = []
    beating = asyncio.create_task(heartbeat(stalls))
    started = time.perf_counter()
    for _ in range(images):
        await to_thread.run_sync(embed)
    elapsed = time.perf_counter() - started
    await asyncio.sleep(2 * PERIOD)  # a stall in progress ends before the heartbeat is stopped
    beating.cancel()
    return {
        "longest": max(stalls),
        "p99": statistics.quantiles(stalls, n=100, method="inclusive")[98],
        "beats": len(stalls),
        "image": elapsed / images * 1e3,
    }


def in_child(runtime: str, images: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--images", str(images)]
    done = subprocess.run(
        [*command, "--child", runtime],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(rounds: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'':10} {'longest stall':>30} {'p99':>10} {'per image':>12} {'beats':>7}")
    for runtime, results in rounds.items():
        longest = [result["longest"] for result in results]
        each = " ".join(f"{value:.1f}" for value in longest)
        p99 = statistics.median(result["p99"] for result in results)
        image = statistics.median(result["image"] for result in results)
        beats = sum(int(result["beats"]) for result in results)
        print(
            f"{runtime:10} {max(longest):7.1f} ms (rounds: {each}) {p99:7.2f} ms "
            f"{image:8.1f} ms {beats:7}"
        )
    for figure in ("longest", "p99"):
        ours, stock = (
            statistics.median(result[figure] for result in rounds[runtime])
            for runtime in ("aioembed", "stock")
        )
        print(f"{figure}: stock / aioembed = {stock / ours:.1f} (medians of the rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=RUNTIMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        embed = embedder(options.child, program(NAME))
        print(json.dumps(asyncio.run(measure(embed, options.images))))
        return
    program(NAME)
    rounds: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(options.rounds):
        for runtime in RUNTIMES:
            rounds[runtime].append(in_child(runtime, options.images))
    report(rounds)


if __name__ == "__main__":
    main()
