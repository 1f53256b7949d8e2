"""What libraries cost before they do anything: installed size, time and memory of the import.

    python benchmarks/footprint.py aioembed=build/wheels/*.whl fastembed mediapipe [--rounds 7]

Each is installed with its dependencies into its own environment, by this interpreter's pip;
`NAME=REQUIREMENT` names the requirement if it is not the name. Size is that of the files
in `site-packages` without pip and compiled bytecode. The imports take turns, each in a fresh
process that had one round before, so that the files are cached; figures are medians. Memory is the
resident set after the import. `nothing` is the interpreter alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

MEASURE = """
import sys, time
began = time.perf_counter()
if sys.argv[1] != "nothing":
    __import__(sys.argv[1])
elapsed = time.perf_counter() - began
status = open("/proc/self/status").read()
print(elapsed, status.split("VmRSS:")[1].split()[0])
"""
OWN = ("pip", "setuptools", "_distutils_hack", "distutils-precedence.pth", "pkg_resources")


class Cost(NamedTuple):
    """Of one import: seconds, and megabytes afterwards."""

    seconds: float
    megabytes: float


def install(requirement: str, folder: Path) -> Path:
    """Make an environment and return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--quiet", "install", requirement], check=True)
    return python


def installed_megabytes(folder: Path) -> float:
    [packages] = folder.glob("lib/python3*/site-packages")
    files = (
        path
        for entry in packages.iterdir()
        if not entry.name.startswith(OWN)
        for path in (entry.rglob("*") if entry.is_dir() else [entry])
    )
    return sum(one.stat().st_size for one in files if one.is_file() and one.suffix != ".pyc") / 1e6


def import_once(python: Path, module: str) -> Cost:
    command = [str(python), "-W", "ignore", "-c", MEASURE, module]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, kibibytes = done.stdout.split()[-2:]
    return Cost(float(seconds), int(kibibytes) * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("libraries", nargs="+", metavar="NAME[=REQUIREMENT]")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    wanted = dict(one.partition("=")[::2] for one in options.libraries)
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder, name) for name in wanted}
        pythons = {name: install(wanted[name] or name, place) for name, place in places.items()}
        sizes = {name: installed_megabytes(place) for name, place in places.items()}
        pythons["nothing"] = next(iter(pythons.values()))
        costs: dict[str, list[Cost]] = {name: [] for name in pythons}
        for _ in range(options.rounds + 1):
            for name, python in pythons.items():
                costs[name].append(import_once(python, name))
    print(f"{'':12} {'installed':>12} {'import':>9} {'memory':>9}")
    for name, rounds in costs.items():
        seconds = statistics.median(one.seconds for one in rounds[1:])
        megabytes = statistics.median(one.megabytes for one in rounds[1:])
        size = f"{sizes[name]:.0f} MB" if name in sizes else ""
        print(f"{name:12} {size:>12} {seconds:7.2f} s {megabytes:6.0f} MB")


if __name__ == "__main__":
    main()
