"""The cost of the first vector in time, memory and disk, against the stock binding.

    python benchmarks/cold_start.py [--rounds 3]

The same program of CLIP's size is loaded and run once through this library's runtime and through
`executorch.runtime`, each in fresh processes, by turns. Installed size is that of the distribution
and its dependencies in this environment, by their lists of files.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from programs import INPUT_SHAPES, program

NAME = "clip_image_fp32"
RUNTIMES = ("aioembed", "stock")
FIGURES = {
    "import": "s",
    "load": "s",
    "first vector": "s",
    "in all": "s",
    "process RSS": "MB",
    "process PSS": "MB",
}


def start_aioembed(path: Path) -> dict[str, float]:
    began = time.perf_counter()
    import aioembed
    from aioembed.runtime import Program

    imported = time.perf_counter()
    assert aioembed.__doc__
    loaded = Program.load(path)
    ready = time.perf_counter()
    import numpy as np

    loaded.run(np.full(INPUT_SHAPES[NAME], 0.5, np.float32))
    return figures(began, imported, ready)


def start_stock(path: Path) -> dict[str, float]:
    began = time.perf_counter()
    import torch
    from executorch.runtime import Runtime

    imported = time.perf_counter()
    forward = Runtime.get().load_program(path).load_method("forward")
    assert forward is not None
    ready = time.perf_counter()
    forward.execute([torch.full(INPUT_SHAPES[NAME], 0.5)])
    return figures(began, imported, ready)


def figures(began: float, imported: float, ready: float) -> dict[str, float]:
    """Times since the given ones, and the memory of this process while the program is loaded."""
    ended = time.perf_counter()
    import psutil

    memory = psutil.Process().memory_full_info()
    return {
        "import": imported - began,
        "load": ready - imported,
        "first vector": ended - ready,
        "in all": ended - began,
        "process RSS": memory.rss / 1e6,
        "process PSS": getattr(memory, "pss", memory.uss) / 1e6,
    }


def child(runtime: str) -> None:
    start = start_aioembed if runtime == "aioembed" else start_stock
    print(json.dumps(start(program(NAME))))


def in_child(runtime: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", runtime],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def requirements(name: str) -> set[str]:
    """Names of a distribution's requirements without extras, where they are installed."""
    names = set()
    for line in metadata.requires(name) or ():
        requirement, _, marker = line.partition(";")
        wanted = re.match(r"[\w.-]+", requirement)
        if wanted and "extra" not in marker and installed(wanted.group()):
            names.add(normal(wanted.group()))
    return names


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(roots: set[str]) -> set[str]:
    """The distributions and all that they require."""
    found: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= requirements(name) - found
    return found


def distribution_bytes(name: str) -> int:
    files = metadata.files(name) or []
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


def package_bytes() -> int:
    """Of this library's package, wherever it is imported from."""
    import aioembed

    folder = Path(aioembed.__file__).parent
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files)


def base_requirements() -> set[str]:
    """Names of what this library requires, from its pyproject.toml."""
    import tomllib

    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    lines = tomllib.loads(text)["project"]["dependencies"]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines}


def installed_megabytes() -> dict[str, float]:
    ours = sum(map(distribution_bytes, closure(base_requirements()))) + package_bytes()
    stock = sum(map(distribution_bytes, closure({"executorch", "torch"})))
    return {"aioembed": ours / 1e6, "stock": stock / 1e6}


def row(name: str, unit: str, ours: float, stock: float) -> str:
    return f"{name:14} {ours:9.2f} {stock:9.2f} {unit:3} {stock / ours:9.1f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=RUNTIMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    size = program(NAME).stat().st_size / 1e6
    rounds: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(options.rounds):
        for runtime in RUNTIMES:
            rounds[runtime].append(in_child(runtime))
    print(f"{NAME}: {size:.0f} MB; medians of {options.rounds} processes each")
    print(f"{'':14} {'aioembed':>9} {'stock':>9} {'':3} {'ratio':>9}")
    for figure, unit in FIGURES.items():
        ours, stock = (
            statistics.median(result[figure] for result in rounds[runtime]) for runtime in RUNTIMES
        )
        print(row(figure, unit, ours, stock))
    sizes = installed_megabytes()
    print(row("installed", "MB", sizes["aioembed"], sizes["stock"]))


if __name__ == "__main__":
    main()
