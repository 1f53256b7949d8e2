"""Download throughput on loopback: aioembed against huggingface_hub and curl, one nginx, one file.

    python benchmarks/download.py [--megabytes 350] [--rounds 5]

Each download is a process of its own; the peers take turns, so that a busy machine disturbs all
alike. Two comparisons:

- `disk`: the file goes to the folder for temporary files. aioembed hashes, waits until the disk
  has it all, and renames. curl and huggingface_hub only hand the file to the system, which writes
  it later, and hash nothing. `dd` copies the same bytes with no network and waits for the disk:
  that is what the wait alone takes.
- `memory`: the file goes to /dev/shm, where there is no disk to wait for. aioembed still hashes.

Prints medians, ratios, the longest stall of the event loop, the memory a download takes, for the
whole file and for a tenth of it, and whether the goals are met. `floor` is the machine's share in
the stall: the same heartbeat in a process that does nothing, while curl downloads the file, hashes
it and syncs it beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread

REPOSITORY = "bench/model"
COMMIT = "0" * 40
CONFIG = """
worker_processes 1;
daemon off;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    server {{
        listen 127.0.0.1:{port};
        root {root}/www;
        add_header X-Repo-Commit {commit};
    }}
}}
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(root: Path) -> Iterator[str]:
    port = free_port()
    config = root / "nginx.conf"
    config.write_text(CONFIG.format(root=root, port=port, commit=COMMIT))
    root.chmod(0o755)
    with subprocess.Popen(["nginx", "-p", str(root), "-c", str(config)]) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def run_aioembed(url: str, folder: Path) -> dict[str, float]:
    from aioembed.download import Cache, Fetcher, Resource

    fetcher = Fetcher(Cache(folder))

    async def fetch() -> None:
        await fetcher.fetch([Resource(url)])

    return anyio.run(beside_heartbeat, fetch)


def run_floor(url: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", CURL_CHECKED, url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as other:

        async def wait() -> None:
            await anyio.to_thread.run_sync(other.wait)

        return anyio.run(beside_heartbeat, wait)


async def beside_heartbeat(work: Callable[[], Awaitable[None]]) -> dict[str, float]:
    worst = 0.0

    async def heartbeat() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began - 0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(heartbeat)
        await anyio.sleep(0.01)
        worst = 0.0
        before = resident()
        began = time.perf_counter()
        await work()
        seconds = time.perf_counter() - began
        group.cancel_scope.cancel()
    return {"seconds": seconds, "stall": worst, "memory": peak() - before}


def run_huggingface_hub(url: str, folder: Path) -> dict[str, float]:
    os.environ["HF_ENDPOINT"] = url.partition("/bench")[0]
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub import hf_hub_download

    before = resident()
    began = time.perf_counter()
    hf_hub_download(REPOSITORY, Path(url).name, cache_dir=folder)
    return {"seconds": time.perf_counter() - began, "memory": peak() - before}


def run_curl(url: str, folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    subprocess.run(["curl", "-sf", "-o", str(folder / "model.pte"), url], check=True)
    return {"seconds": time.perf_counter() - began, "memory": 0.0}


def run_curl_checked(url: str, folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    target = folder / "model.pte"
    subprocess.run(["curl", "-sf", "-o", str(target), url], check=True)
    subprocess.run(["openssl", "dgst", "-sha256", str(target)], check=True, capture_output=True)
    subprocess.run(["sync", str(target)], check=True)
    return {"seconds": time.perf_counter() - began, "memory": 0.0}


def run_dd(url: str, folder: Path) -> dict[str, float]:
    source = folder.parent / "www" / url.partition("//")[2].partition("/")[2]
    began = time.perf_counter()
    command = ["dd", f"if={source}", f"of={folder / 'model.pte'}", "bs=1M", "conv=fsync"]
    subprocess.run(command, check=True, capture_output=True)
    return {"seconds": time.perf_counter() - began, "memory": 0.0}


AIOEMBED, CURL, HUB, FLOOR = "aioembed", "curl", "huggingface_hub", "floor"
CURL_CHECKED = "curl, then openssl dgst and sync"
DD = "dd, then fsync: the disk alone"
RUNNERS = {
    AIOEMBED: run_aioembed,
    CURL: run_curl,
    CURL_CHECKED: run_curl_checked,
    HUB: run_huggingface_hub,
    DD: run_dd,
    FLOOR: run_floor,
}
DISK, MEMORY = "disk", "memory"
PLACES = {DISK: tuple(RUNNERS), MEMORY: (AIOEMBED, CURL, HUB)}
SHARED_MEMORY = Path("/dev/shm")
STALL_MS, OF_CURL, GROWTH_MB = 5.0, 0.9, 1.0

Run = dict[str, float]


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_child(name: str, url: str, root: Path) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        command = [sys.executable, __file__, "--child", name, url, str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result
    finally:
        shutil.rmtree(folder)


def make_files(www: Path, megabytes: int) -> dict[str, Path]:
    folder = www / REPOSITORY / "resolve" / "main"
    folder.mkdir(parents=True)
    sizes = {"large": megabytes, "small": max(1, megabytes // 10)}
    for name, size in sizes.items():
        with (folder / f"{name}.pte").open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1_000_000))
    return {name: folder / f"{name}.pte" for name in sizes}


def measure(root: Path, places: dict[str, Path], megabytes: int, rounds: int) -> None:
    files = make_files(root / "www", megabytes)
    with nginx(root) as origin:
        urls = {n: f"{origin}/{REPOSITORY}/resolve/main/{p.name}" for n, p in files.items()}
        for name in RUNNERS:
            run_child(name, urls["small"], root)
        results: dict[tuple[str, str], list[Run]] = {}
        small = []
        for _ in range(rounds):
            for place, folder in places.items():
                for name in PLACES[place]:
                    run = run_child(name, urls["large"], folder)
                    results.setdefault((place, name), []).append(run)
            small.append(run_child(AIOEMBED, urls["small"], root))
    print(f"{megabytes} MB from nginx on loopback, {rounds} rounds, medians (fastest)")
    for place in places:
        report(place, results, megabytes)
    report_goals(places, results, small)


def seconds(runs: list[Run]) -> float:
    return statistics.median(run["seconds"] for run in runs)


def report(place: str, results: dict[tuple[str, str], list[Run]], megabytes: int) -> None:
    print(f"{place}:")
    ours = results[place, AIOEMBED]
    for name in PLACES[place]:
        runs = results[place, name]
        if name == FLOOR:
            continue
        middle, best = seconds(runs), min(run["seconds"] for run in runs)
        each = " ".join(
            f"{run['seconds'] / own['seconds']:.2f}" for run, own in zip(runs, ours, strict=True)
        )
        print(
            f"  {name:34} {middle:5.2f} s ({best:.2f})  {megabytes / middle:5.0f} MB/s  "
            f"{statistics.median(run['cpu'] for run in runs):5.2f} s of processor time  "
            f"aioembed's throughput is {middle / seconds(ours):.2f} x (by round {each})"
        )
    for name in (AIOEMBED, FLOOR):
        if name in PLACES[place]:
            each = " ".join(f"{run['stall'] * 1000:.1f}" for run in results[place, name])
            stalled = stall(results[place, name])
            print(f"  longest stall of the event loop, {name:8}: {stalled:.1f} ms ({each})")


def stall(runs: list[Run]) -> float:
    return statistics.median(run["stall"] for run in runs) * 1000


def report_goals(
    places: dict[str, Path], results: dict[tuple[str, str], list[Run]], small: list[Run]
) -> None:
    whole, tenth = (
        statistics.median(run["memory"] for run in runs)
        for runs in (results[DISK, AIOEMBED], small)
    )
    print(f"memory a download takes: {whole:.1f} MB, of a tenth of the file {tenth:.1f} MB")
    print("goals:")
    for place in places:
        ours = results[place, AIOEMBED]
        of_curl, of_hub = (seconds(results[place, n]) / seconds(ours) for n in (CURL, HUB))
        goal(f"{place}: {of_curl:.2f} x curl, goal {OF_CURL}", met=of_curl >= OF_CURL)
        goal(f"{place}: {of_hub:.2f} x huggingface_hub, goal 1", met=of_hub >= 1)
        worst = stall(ours)
        goal(f"{place}: stall {worst:.1f} ms, goal {STALL_MS}", met=worst <= STALL_MS)
    goal(
        f"memory grows by {whole - tenth:.1f} MB, goal {GROWTH_MB}", met=whole - tenth <= GROWTH_MB
    )
    bound = seconds(results[DISK, CURL]) / seconds(results[DISK, DD])
    print(f"  (dd, which has no network and waits for this disk, reaches {bound:.2f} x curl)")


def goal(what: str, *, met: bool) -> None:
    print(f"  {'met   ' if met else 'MISSED'} {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "URL", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        name, url, folder = arguments.child
        before = cpu_seconds()
        result = RUNNERS[name](url, Path(folder))
        print(json.dumps({**result, "cpu": cpu_seconds() - before}))
        return
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = {DISK: root}
        if SHARED_MEMORY.is_dir():
            memory = stack.enter_context(tempfile.TemporaryDirectory(dir=SHARED_MEMORY))
            places[MEMORY] = Path(memory)
        measure(root, places, arguments.megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
