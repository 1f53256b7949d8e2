"""Download over TLS on loopback: aioembed, huggingface_hub and curl, from one nginx, one file.

    python benchmarks/download.py [--megabytes 350] [--rounds 5]

nginx uses a certificate made for the run. Each download runs in its own process, and the peers
alternate, so that a busy machine affects all of them. aioembed hashes the file and waits for
fsync; huggingface_hub and curl do neither. Prints medians, aioembed's throughput relative to each
peer's, and the memory that the file and a tenth of it take. The longest stall of the event loop is
measured in separate runs (`floor`: the same heartbeat while curl downloads, hashes and syncs in
another process). Plain http is one line, for aioembed only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
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
CONFIG = """
worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; sendfile on; tcp_nopush on;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    server {{
        listen 127.0.0.1:{tls} ssl; listen 127.0.0.1:{plain};
        ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem;
        root {root}/www; add_header X-Repo-Commit {commit};
    }}
}}
"""
AIOEMBED, PLAIN, HUB, CURL = "aioembed", "aioembed, http", "huggingface_hub", "curl"
WATCHED, FLOOR = "aioembed, watched", "floor"
Run = dict[str, float]


@contextmanager
def nginx(root: Path) -> Iterator[tuple[str, str]]:
    """Serve `root/www`; yields the origins over TLS and plain."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    names = ["subjectAltName=DNS:localhost", "-keyout", f"{root}/key.pem", "-out"]
    subprocess.run([*command.split(), *names, f"{root}/cert.pem"], check=True, capture_output=True)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        tls, plain = one.getsockname()[1], other.getsockname()[1]
    text = CONFIG.format(root=root, tls=tls, plain=plain, commit="0" * 40)
    (root / "nginx.conf").write_text(text)
    root.chmod(0o755)
    with subprocess.Popen(["nginx", "-p", str(root), "-c", f"{root}/nginx.conf"]) as server:
        try:
            while not (root / "nginx.pid").exists() and server.poll() is None:
                time.sleep(0.02)
            yield f"https://localhost:{tls}", f"http://127.0.0.1:{plain}"
        finally:
            server.terminate()


@contextmanager
def measured() -> Iterator[Run]:
    """Yield what the block takes, once it has ended; imports come before it."""
    run: Run = {}
    memory, cpu, began = resident(), cpu_seconds(), time.perf_counter()
    yield run
    run["seconds"] = time.perf_counter() - began
    run["cpu"], run["memory"] = cpu_seconds() - cpu, peak() - memory


def run_aioembed(url: str, folder: Path) -> Run:
    from aioembed.download import Cache, Fetcher, Resource

    fetcher = Fetcher(Cache(folder))

    async def fetch() -> Run:
        with measured() as run:
            await fetcher.fetch([Resource(url)])
        return run

    return anyio.run(fetch)


def run_watched(url: str, folder: Path) -> Run:
    from aioembed.download import Cache, Fetcher, Resource

    fetcher = Fetcher(Cache(folder))

    async def fetch() -> None:
        await fetcher.fetch([Resource(url)])

    return anyio.run(beside_heartbeat, fetch)


def run_floor(url: str, folder: Path) -> Run:
    target = folder / "model.pte"
    shell = f"curl -sf -o {target} {url} && openssl dgst -sha256 {target} && sync {target}"

    async def wait() -> None:
        await anyio.run_process(shell)

    return anyio.run(beside_heartbeat, wait)


async def beside_heartbeat(work: Callable[[], Awaitable[None]]) -> Run:
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
        await work()
        group.cancel_scope.cancel()
    return {"stall": worst}


def run_huggingface_hub(url: str, folder: Path) -> Run:
    os.environ["HF_ENDPOINT"] = url.partition("/bench")[0]
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from huggingface_hub import hf_hub_download

    with measured() as run:
        hf_hub_download(REPOSITORY, Path(url).name, cache_dir=folder)
    return run


def run_curl(url: str, folder: Path) -> Run:
    with measured() as run:
        subprocess.run(["curl", "-sf", "-o", str(folder / "model.pte"), url], check=True)
    return run


RUNNERS = {
    AIOEMBED: run_aioembed,
    PLAIN: run_aioembed,
    HUB: run_huggingface_hub,
    CURL: run_curl,
    WATCHED: run_watched,
    FLOOR: run_floor,
}


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_child(name: str, url: str, root: Path) -> Run:
    folder = Path(tempfile.mkdtemp(dir=root))
    trusted = {"SSL_CERT_FILE": f"{root}/cert.pem", "CURL_CA_BUNDLE": f"{root}/cert.pem"}
    try:
        command = [sys.executable, __file__, "--child", name, url, str(folder)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **trusted}
        )
        result: Run = json.loads(done.stdout.splitlines()[-1])
        return result
    finally:
        shutil.rmtree(folder)


def make_file(www: Path, name: str, megabytes: int) -> str:
    """Make a file that the server serves; returns its path."""
    folder = www / REPOSITORY / "resolve" / "main"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    return f"/{REPOSITORY}/resolve/main/{name}"


def measure(root: Path, megabytes: int, rounds: int) -> None:
    large = make_file(root / "www", "large.pte", megabytes)
    small = make_file(root / "www", "small.pte", max(1, megabytes // 10))
    results: dict[str, list[Run]] = {name: [] for name in RUNNERS}
    tenths = []
    with nginx(root) as (tls, plain):
        for name in RUNNERS:
            run_child(name, (plain if name == PLAIN else tls) + small, root)
        for _ in range(rounds):
            for name, runs in results.items():
                runs.append(run_child(name, (plain if name == PLAIN else tls) + large, root))
            tenths.append(run_child(AIOEMBED, tls + small, root))
    report(results, tenths, megabytes, rounds)


def median(runs: list[Run], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def report(results: dict[str, list[Run]], tenths: list[Run], megabytes: int, rounds: int) -> None:
    print(f"{megabytes} MB from nginx over TLS on loopback, {rounds} rounds, medians (fastest)")
    ours = results[AIOEMBED]
    for name in (AIOEMBED, HUB, CURL, PLAIN):
        runs = results[name]
        middle, best = median(runs, "seconds"), min(run["seconds"] for run in runs)
        print(
            f"  {name:16} {middle:5.2f} s ({best:.2f})  {megabytes / middle:5.0f} MB/s  "
            f"{median(runs, 'cpu'):5.2f} s of processor time  "
            f"aioembed's throughput is {middle / median(ours, 'seconds'):.2f} x"
        )
    for name in (WATCHED, FLOOR):
        stalls = " ".join(f"{run['stall'] * 1000:.1f}" for run in results[name])
        worst = median(results[name], "stall") * 1000
        print(f"  longest stall of the event loop, {name:17}: {worst:.1f} ms ({stalls})")
    complete, tenth = median(ours, "memory"), median(tenths, "memory")
    print(f"  memory a download takes: {complete:.1f} MB, of a tenth of the file {tenth:.1f} MB")
    to_hub = median(results[HUB], "seconds") / median(ours, "seconds")
    print(f"  goal, no slower than huggingface_hub: {'met' if to_hub >= 1 else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "URL", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        name, url, folder = arguments.child
        print(json.dumps(RUNNERS[name](url, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as root:
        measure(Path(root), arguments.megabytes, arguments.rounds)


if __name__ == "__main__":
    main()
