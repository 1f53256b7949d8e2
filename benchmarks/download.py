"""Download throughput on loopback: aioembed against huggingface_hub and curl, one nginx, one file.

    python benchmarks/download.py [--megabytes 350] [--rounds 5]

Each download is a process of its own; the peers take turns, so that a busy machine disturbs all
alike. aioembed hashes, syncs to the disk and renames; curl only writes the file; huggingface_hub
writes it and does not check its hash. Prints medians, ratios, the longest stall of the event loop
and the memory a download takes, for the whole file and for a tenth of it. `floor` is the machine's
share in the stall: the same heartbeat in a process that does nothing, while curl downloads the
file, hashes it and syncs it beside.
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
from contextlib import contextmanager
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
    from aioembed.resources import Cache, Fetcher, Resource

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


CURL_CHECKED = "curl, then openssl dgst and sync"
PEERS = {
    "aioembed": run_aioembed,
    "curl": run_curl,
    CURL_CHECKED: run_curl_checked,
    "huggingface_hub": run_huggingface_hub,
}
RUNNERS = {**PEERS, "floor": run_floor}


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


def measure(root: Path, megabytes: int, rounds: int) -> None:
    files = make_files(root / "www", megabytes)
    with nginx(root) as origin:
        urls = {n: f"{origin}/{REPOSITORY}/resolve/main/{p.name}" for n, p in files.items()}
        for name in RUNNERS:
            run_child(name, urls["small"], root)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in RUNNERS}
        small = []
        for _ in range(rounds):
            for name, found in results.items():
                found.append(run_child(name, urls["large"], root))
            small.append(run_child("aioembed", urls["small"], root))
    report(results, small, megabytes)


def report(
    results: dict[str, list[dict[str, float]]], small: list[dict[str, float]], megabytes: int
) -> None:
    rounds = len(small)
    print(f"{megabytes} MB from nginx on loopback, {rounds} rounds, medians (fastest)")
    ours = [run["seconds"] for run in results["aioembed"]]
    for name, found in results.items():
        seconds = [run["seconds"] for run in found]
        middle, best = statistics.median(seconds), min(seconds)
        if name not in PEERS:
            continue
        ratio = middle / statistics.median(ours)
        print(
            f"  {name:34} {middle:5.2f} s ({best:.2f})  {megabytes / middle:5.0f} MB/s   "
            f"aioembed's throughput is {ratio:.2f} x (fastest runs {best / min(ours):.2f} x)"
        )
        print(
            f"  {'':34} {statistics.median(run['cpu'] for run in found):5.2f} s of processor time"
        )
    for name in ("aioembed", "floor"):
        stalls = [run["stall"] * 1000 for run in results[name]]
        each = " ".join(f"{stall:.1f}" for stall in stalls)
        print(
            f"  longest stall of the event loop, {name:8}: {statistics.median(stalls):.1f} ms, "
            f"median of rounds ({each})"
        )
    for label, found in (("whole", results["aioembed"]), ("tenth", small)):
        memory = statistics.median(run["memory"] for run in found)
        print(f"  memory a download of the {label:5} file takes: {memory:.1f} MB")


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
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
