"""Latency and memory of CLIP and other families here and in other runtimes, same weights, one run.

    python benchmarks/latency.py [--family NAME] [--tower image|text] [--rounds 15] [--only NAME...]

Every contender runs in its own process, with as many threads as there are CPUs; they alternate, so
that other work of the machine affects all of them. Figures are medians over the rounds; ratios are
to ONNX Runtime fp32. Memory is the process's resident set after the runs, and the part of it that
is not backed by files. The cosine is that of one input's vector to torch eager's. At the end the
figures are compared with the goals.

The weights are seeded and random: time and memory do not depend on them. Needs the [export]
extra, and `pip install onnx onnxruntime onnxscript openvino nncf` for the peers; those that are
missing are left out. `latency_models.py` makes the models, once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latency_models import (
    IMAGE,
    MODEL_VARIABLE,
    MODELS,
    TEXT,
    checkpoint,
    input_file,
    lengths,
    make_model,
    model_path,
)
from programs import folder

RUNS = 3
SIMD = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
VNNI = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
BASE = "ONNX Runtime fp32"


@dataclass
class Figures:
    """What a contender has shown."""

    vector: np.ndarray[Any, Any]
    rounds: list[list[float]] = field(default_factory=list)
    resident: float = 0.0
    anonymous: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of all runs."""
        return [seconds for times in self.rounds for seconds in times]

    @property
    def median(self) -> float:
        """Of all runs, in seconds."""
        return statistics.median(self.seconds)


def simd() -> list[str]:
    """Return which of the instruction sets that matter this CPU has."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return [name for name in SIMD if name in words]


def cpu() -> str:
    """Return the CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unnamed CPU"


class Contender:
    """A contender's process, and what it has shown."""

    def __init__(self, name: str, tower: str, length: int) -> None:
        kind = IMAGE[name]
        path = checkpoint() if kind == "torch" else model_path(name, tower)
        file = input_file(tower, length, kind)
        script = Path(__file__).with_name("latency_contender.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, kind, name, path, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        first = self.process.stdout.readline()
        self.figures = Figures(np.array(json.loads(first))) if first else None
        if self.figures is None:
            _, errors = self.process.communicate()
            print(f"left out: {name}: {(errors.strip().splitlines() or ['?'])[-1]}", flush=True)

    def take_turn(self) -> None:
        """Run a few times."""
        assert self.process.stdin
        assert self.process.stdout
        assert self.figures
        self.process.stdin.write(f"{RUNS}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.figures.rounds.append(answer["times"])
        self.figures.resident, self.figures.anonymous = answer["memory"]


def compare(names: list[str], tower: str, length: int, rounds: int) -> dict[str, Figures]:
    """Let contenders take turns, and return their figures."""
    checkpoint()
    for name in names:  # models first, so that nothing is made beside a loaded contender
        if IMAGE[name] != "torch":
            subprocess.run(
                [sys.executable, "-W", "ignore", __file__, "--make", name, tower],
                check=False,  # its contender says then why it is left out
                capture_output=True,
            )
    contenders = {name: Contender(name, tower, length) for name in names}
    running = {name: one for name, one in contenders.items() if one.figures}
    for _ in range(rounds):
        for contender in running.values():
            contender.take_turn()
    for contender in running.values():
        contender.process.communicate()
    return {name: one.figures for name, one in running.items() if one.figures}


def show(figures: dict[str, Figures]) -> None:
    """Print a table."""
    print("| | median ms | fastest ms | to ONNX Runtime fp32 | cosine | RSS MB | anonymous MB |")
    print("|---|---|---|---|---|---|---|")
    base = figures[BASE].median if BASE in figures else float("nan")
    truth = figures.get("torch eager")
    for name, shown in figures.items():
        cosine = f"{alike(shown.vector, truth.vector):.6f}" if truth else "?"
        print(
            f"| {name} | {shown.median * 1e3:.1f} | {min(shown.seconds) * 1e3:.1f} "
            f"| {shown.median / base:.2f} | {cosine} "
            f"| {shown.resident:.0f} | {shown.anonymous:.0f} |",
            flush=True,
        )


def alike(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def goals(figures: dict[str, Figures]) -> Iterator[str]:
    """Iterate over the goals, and whether they are met."""
    is_clip = os.environ[MODEL_VARIABLE] == "clip-b32"
    for precision, most in (
        ("fp32", 0.93 if is_clip else 0.95),
        ("int8", 0.28 if is_clip else 0.35),
    ):
        ours = figures.get(f"aioembed {precision}")
        if ours and BASE in figures:
            yield goal(f"{precision} to {BASE}", ours.median / figures[BASE].median, most)
    stock = figures.get("stock binding, plain export fp32")
    fp32 = figures.get("aioembed fp32")
    if stock and fp32:
        yield f"stock ExecuTorch export to ours, fp32: {stock.median / fp32.median:.2f}"
    int8 = figures.get("aioembed int8")
    for name, peer in figures.items():
        if int8 and "int8" in name and not name.startswith("aioembed"):
            yield goal(f"int8 to {name}", int8.median / peer.median, 1.0)
    for precision, most in (("fp32", 400), ("int8", 150)):
        ours, handle = (figures.get(f"aioembed {precision}{x}") for x in ("", ", handle"))
        if ours:
            yield goal(f"{precision} process, MB", ours.resident, most)
        if ours and handle:
            pairs = zip(handle.rounds, ours.rounds, strict=True)
            ratios = [statistics.median(one) / statistics.median(other) for one, other in pairs]
            over = 100 * (statistics.median(ratios) - 1)
            yield goal(f"{precision} handle over the native call, %", over, 3.0)


def goal(name: str, value: float, most: float) -> str:
    """Return a line on one goal."""
    verdict = "met" if value <= most else "missed"
    if verdict == "missed" and name.startswith("int8 to") and not VNNI.intersection(simd()):
        verdict += " (this CPU has no VNNI, which the goal was set with)"
    return f"{name}: {value:.2f}, goal {most:g}: {verdict}"


def main() -> None:
    if sys.argv[1:2] == ["--make"]:
        make_model(sys.argv[2], sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=list(MODELS), default="clip-b32")
    parser.add_argument("--tower", choices=["image", "text"], default="image")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="names of contenders")
    options = parser.parse_args()
    if options.tower not in MODELS[options.family]:
        parser.error(f"{options.family} has no {options.tower} tower")
    os.environ[MODEL_VARIABLE] = options.family  # the contenders' processes read it as well
    folder().mkdir(parents=True, exist_ok=True)
    everyone = IMAGE if options.tower == "image" else TEXT
    names = [name for name in everyone if not options.only or name in options.only]
    print(f"{cpu()}, {os.cpu_count()} CPUs, {' '.join(simd()) or 'no SIMD known here'}")
    for length in lengths(options.tower):
        figures = compare(names, options.tower, length, options.rounds)
        tokens = f", {length} tokens" if length else ""
        print(f"\n{options.family}, {options.tower}{tokens}; load {os.getloadavg()[0]:.1f}")
        show(figures)
        print("", *goals(figures), sep="\n", flush=True)


if __name__ == "__main__":
    main()
