"""One model on all CPUs against copies of it on one CPU each: images per second, memory.

The copies have their own weights, or share one file of packed weights.

    python benchmarks/replicas.py [--copies 2] [--seconds 4] [--rounds 3] [--precisions fp32 int8]

Only the native call is measured, on prepared inputs: each copy is run by its own thread, one image
or one batch at a time. Every kind runs in its own process, by turns; figures are medians of the
rounds. On a busy machine compare the CPU time per image. Making the programs needs the [export]
extra.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from aioembed.runtime import Program, thread_count
from programs import program

KINDS = ("pool", "copies", "sharing")


def load(path: Path, kind: str, copies: int) -> list[Program]:
    if kind == "pool":
        return [Program.load(path)]
    if kind == "copies":
        return [Program.load(path, threads=1) for _ in range(copies)]
    return sharing(path, copies)


def sharing(path: Path, copies: int) -> list[Program]:
    """Copies that map one file of packed weights, each by its own link to it."""
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder) / str(number) for number in range(copies)]
        Program.load(path, threads=1, packed_weights=links[0]).close()
        # Otherwise the first copy locks the file, and the others pack into memory.
        fcntl.flock(os.open(links[0], os.O_RDWR), fcntl.LOCK_SH)
        for link in links[1:]:
            link.hardlink_to(links[0])
        return [Program.load(path, threads=1, packed_weights=link) for link in links]


def most_at_once(loaded: Program) -> tuple[str, int]:
    """The method for batches, and the most items it takes."""
    method = loaded.methods.get("forward_batch", loaded.methods["forward"])
    return method.name, method.inputs[0].shape[0]


def rate(programs: list[Program], batch: int, seconds: float) -> tuple[float, float]:
    """Images per second, and seconds of CPU time per image."""
    method = most_at_once(programs[0])[0] if batch > 1 else "forward"
    shape = (batch, *programs[0].methods[method].inputs[0].shape[1:])
    inputs = np.random.default_rng(0).random(shape, np.float32)
    for each in programs:
        each.run(inputs, method=method)
    counts = [0] * len(programs)
    cpu, began = time.process_time(), time.perf_counter()

    def work(place: int) -> None:
        while time.perf_counter() < began + seconds:
            programs[place].run(inputs, method=method)
            counts[place] += batch

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    return sum(counts) / elapsed, (time.process_time() - cpu) / sum(counts)


def measure(options: argparse.Namespace) -> dict[str, float]:
    programs = load(program(f"clip_fast_{options.precisions[0]}"), options.kind, options.copies)
    alone, alone_cpu = rate(programs, 1, options.seconds)
    batch = most_at_once(programs[0])[1]
    batched, batched_cpu = rate(programs, batch, options.seconds)
    return {
        "alone": alone,
        "alone_cpu": alone_cpu * 1e3,
        "batch": batch,
        "batched": batched,
        "batched_cpu": batched_cpu * 1e3,
        "memory": psutil.Process().memory_info().rss / 1e6,
    }


def in_child(kind: str, precision: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--kind", kind, "--precisions", precision]
    command += ["--copies", str(options.copies), "--seconds", str(options.seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def compare(precision: str, options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            runs[kind].append(in_child(kind, precision, options))
    pool = 0.0
    print(f"\n{precision}: images/s (CPU ms each) one by one; in batches; memory")
    for kind in KINDS:
        found = {name: statistics.median(run[name] for run in runs[kind]) for name in runs[kind][0]}
        best = max(found["alone"], found["batched"])
        pool = pool or best
        name = f"1 on {thread_count()} CPUs" if kind == "pool" else f"{options.copies} {kind}"
        print(
            f"  {name:12} {found['alone']:6.1f} ({found['alone_cpu']:5.1f}); of "
            f"{found['batch']:.0f} {found['batched']:6.1f} ({found['batched_cpu']:5.1f}); "
            f"{found['memory']:4.0f} MB; {best / pool:.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options)))
    else:
        for precision in options.precisions:
            program(f"clip_fast_{precision}")
            compare(precision, options)


if __name__ == "__main__":
    main()
