"""Images per second, latency and loop stalls of many callers, against peers in the same run.

    python benchmarks/throughput.py [--callers 1 8 32 128] [--seconds 3] [--rounds 1]
        [--minutes 12] [--precisions fp32 int8] [--inputs array jpeg] [--engines ...]

Every engine runs in its own process, by turns. `loop` is a plain blocking loop over this
library's native call with Pillow, which has no callers. `onnx` is a thread pool over one ONNX
Runtime session (fp32, or quantised dynamically to int8), `fastembed` its image model over the
same ONNX file, `infinity` its engine on torch, fp32 alone, `stock` the executorch package's own
binding in a worker thread. `aioembed:replicas=2` is this library with options; commas separate
several. The weights are random; `array` inputs are uint8 224 x 224 arrays, `jpeg` are JPEGs of
640 x 480. Every engine runs after `gc.freeze()`. Making the programs needs the [export] extra, onnx
and onnxscript. Peers that cannot run are left out with their error, and no case starts after
`--minutes`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import psutil

from aioembed.runtime import available_cpus
from peers import ENGINES, Call, Item, drawn_images, make_models, open_engine, patches
from programs import program

PERIOD = 0.001
PATIENCE = 120
LOOP_GOAL, STALL_GOAL = 1.15, 5.0
FLOOR_SECONDS = 5
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """What one line of the table is about."""

    precision: str
    kind: str
    callers: int
    engine: str


async def heartbeat(stalls: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PERIOD)
        stalls.append((time.perf_counter() - before - PERIOD) * 1e3)


async def measure(call: Call, items: list[Item], callers: int, seconds: float) -> Figures:
    stalls: list[float] = []
    latencies: list[float] = []
    source = itertools.cycle(items)
    for _ in range(2):
        await call(next(source))
    beating = asyncio.create_task(heartbeat(stalls))
    await asyncio.sleep(10 * PERIOD)
    stalls.clear()
    cpu, started = time.process_time(), time.perf_counter()

    async def caller() -> None:
        while (began := time.perf_counter()) < started + seconds:
            await call(next(source))
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    await asyncio.sleep(2 * PERIOD)  # a stall in progress ends before the heartbeat is stopped
    beating.cancel()
    return figures(latencies, stalls, elapsed, cpu)


def plain_loop(precision: str, items: list[Item], seconds: float) -> Figures:
    from aioembed.runtime import Program

    loaded = Program.load(program(f"clip_fast_{precision}"))
    source = itertools.cycle(items)
    for _ in range(2):
        loaded.run(patches(next(source)))
    latencies: list[float] = []
    cpu, started = time.process_time(), time.perf_counter()
    while (began := time.perf_counter()) < started + seconds:
        loaded.run(patches(next(source)))
        latencies.append(time.perf_counter() - began)
    elapsed = time.perf_counter() - started
    stalls = [seconds * 1e3 for seconds in latencies]
    return figures(latencies, stalls, elapsed, time.process_time() - cpu)


def figures(latencies: list[float], stalls: list[float], elapsed: float, cpu: float) -> Figures:
    cuts = percentiles(latencies)
    return {
        "rate": len(latencies) / elapsed,
        "p50": cuts[49] * 1e3,
        "p99": cuts[98] * 1e3,
        "stall": max(stalls),
        "stall99": percentiles(stalls)[98],
        "cpu": cpu / elapsed,
        "memory": psutil.Process().memory_info().rss / 1e6,
    }


def percentiles(values: list[float]) -> list[float]:
    return (
        statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    )


def floor() -> Figures:
    """The machine's share in stalls: a heartbeat beside processes that keep every CPU busy."""

    async def beat() -> list[float]:
        stalls: list[float] = []
        beating = asyncio.create_task(heartbeat(stalls))
        await asyncio.sleep(FLOOR_SECONDS)
        beating.cancel()
        return stalls

    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        stalls = asyncio.run(beat())
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    return {"stall": max(stalls), "stall99": percentiles(stalls)[98]}


async def run_engine(options: argparse.Namespace) -> dict[str, Figures]:
    items = drawn_images(options.inputs[0])
    async with AsyncExitStack() as stack:
        call = await open_engine(options.child, options.precisions[0], stack)
        gc.collect()
        gc.freeze()
        return {
            str(callers): await measure(call, items, callers, options.seconds)
            for callers in options.callers
        }


def in_child(
    engine: str, precision: str, kind: str, options: argparse.Namespace
) -> dict[str, Figures]:
    command = [sys.executable, "-W", "ignore", __file__, "--child", engine]
    command += ["--precisions", precision, "--inputs", kind, "--seconds", str(options.seconds)]
    command += ["--callers", *map(str, options.callers)]
    if time.monotonic() > options.deadline:
        print(f"  {engine} left out: the time of --minutes is over")
        return {}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        print(f"  {engine} did not end within {PATIENCE} s")
        return {}
    if done.returncode:
        print(f"  {engine} did not run: {done.stderr.strip().splitlines()[-1][:160]}")
        return {}
    result: dict[str, Figures] = json.loads(done.stdout.splitlines()[-1])
    return result


def engines_of(precision: str, options: argparse.Namespace) -> list[str]:
    """Infinity quantises nothing on a CPU."""
    return [name for name in options.engines if precision == "fp32" or name != "infinity"]


def compare(precision: str, kind: str, options: argparse.Namespace) -> dict[Case, Figures]:
    print(
        f"\n{precision}, {kind}: images/s (p50 / p99 ms; longest and p99 stall, ms; "
        "CPUs, CPU time; memory)"
    )
    engines = engines_of(precision, options)
    runs: dict[str, list[dict[str, Figures]]] = {engine: [] for engine in engines}
    for _ in range(options.rounds):
        for engine in engines:
            runs[engine].append(in_child(engine, precision, kind, options))
    found: dict[Case, Figures] = {}
    for callers in options.callers:
        for engine in engines:
            mine = [
                run[key] for run in runs[engine] for key in (str(callers), "loop") if key in run
            ]
            if mine:
                case = Case(precision, kind, callers, engine)
                found[case] = {key: statistics.median(run[key] for run in mine) for key in mine[0]}
        show(
            callers, {case.engine: each for case, each in found.items() if case.callers == callers}
        )
    return found


def show(callers: int, found: dict[str, Figures]) -> None:
    for engine, each in found.items():
        print(
            f"  {callers:>4} callers {engine:19} {each['rate']:7.1f}/s "
            f"({each['p50']:7.1f} / {each['p99']:7.1f}; {each['stall']:6.1f}, "
            f"{each['stall99']:5.1f}; {each['cpu']:.2f}, "
            f"{each['cpu'] / each['rate'] * 1e3:.0f} ms each; {each['memory']:.0f} MB)"
        )
    if "aioembed" in found:
        ours = found["aioembed"]["rate"]
        others = ((name, each["rate"]) for name, each in found.items() if name != "aioembed")
        ratios = ", ".join(f"{ours / rate:.2f} x {name}" for name, rate in others)
        print(f"       aioembed = {ratios}", flush=True)


def judge(found: dict[Case, Figures]) -> None:
    """Say which goals are met, by each choice of our options."""
    machine = floor()
    print(f"\nthe machine's own stalls: {machine['stall']:.1f} ms, p99 {machine['stall99']:.1f} ms")
    for engine in dict.fromkeys(case.engine for case in found if is_ours(case.engine)):
        print(f"goals, {engine}")
        ours = {case: each for case, each in found.items() if case.engine == engine}
        judge_loop(ours, found)
        judge_peers(ours, found)
        longest = [each["stall"] for each in ours.values()]
        print(
            f"  longest stall {max(longest):.1f} ms, median of the lines "
            f"{statistics.median(longest):.1f}; goal {STALL_GOAL}: "
            f"{met(max(longest) <= STALL_GOAL)}"
        )


def is_ours(engine: str) -> bool:
    return engine.partition(":")[0] == "aioembed"


def judge_loop(ours: dict[Case, Figures], found: dict[Case, Figures]) -> None:
    """The plain loop from JPEGs, at whatever concurrency is best."""
    ratios = [
        (each["rate"] / found[loop]["rate"], case.callers)
        for case, each in ours.items()
        if (case.precision, case.kind) == ("fp32", "jpeg")
        and (loop := replace(case, engine="loop")) in found
    ]
    if ratios:
        best, callers = max(ratios)
        print(
            f"  fp32 from JPEGs, {callers} callers: {best:.2f} x the plain loop; "
            f"goal {LOOP_GOAL}: {met(best >= LOOP_GOAL)}"
        )


def judge_peers(ours: dict[Case, Figures], found: dict[Case, Figures]) -> None:
    """The best peer of each line against ours."""
    behind, compared = [], 0
    for case, each in ours.items():
        rates = {
            other.engine: there["rate"]
            for other, there in found.items()
            if other == replace(case, engine=other.engine)
            and other.engine in ENGINES
            and not is_ours(other.engine)
        }
        if rates:
            compared += 1
            peer = max(rates, key=lambda name: rates[name])
            if (ratio := each["rate"] / rates[peer]) <= 1:
                line = f"{case.precision} {case.kind}, {case.callers} callers"
                behind.append(f"\n    behind: {line}: {ratio:.2f} x {peer}")
    if compared:
        ahead = compared - len(behind)
        print(
            f"  ahead of the best peer in {ahead} of {compared} lines; goal all: "
            f"{met(not behind)}{''.join(behind)}"
        )


def met(holds: bool) -> str:
    return "met" if holds else "not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--inputs", nargs="+", default=["array", "jpeg"])
    parser.add_argument(
        "--engines", nargs="+", default=["loop", *ENGINES, f"aioembed:replicas={available_cpus()}"]
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "loop":
        items = drawn_images(options.inputs[0])
        print(json.dumps({"loop": plain_loop(options.precisions[0], items, options.seconds)}))
    elif options.child:
        print(json.dumps(asyncio.run(run_engine(options))))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    for precision in options.precisions:
        make_models(precision)
    options.deadline = time.monotonic() + options.minutes * 60
    found: dict[Case, Figures] = {}
    for precision in options.precisions:
        for kind in options.inputs:
            found |= compare(precision, kind, options)
    judge(found)


if __name__ == "__main__":
    main()
