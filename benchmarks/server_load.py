"""Mixed load on `aioembed serve`: valid, broken, oversized and slow requests on 64 connections.

Prints the statuses, the latency of `/healthz` meanwhile, and the server's memory over time, and
fails if anything was answered with 500 or not at all.

    python benchmarks/server_load.py --seconds 60
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

import anyio
import httpx
import numpy as np
import psutil
from anyio.abc import TaskGroup
from PIL import Image

LORISES = 8


def photograph(seed: int) -> bytes:
    """Draw a JPEG of about 50 KB."""
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


class Load:
    """Sends requests and keeps what came of them."""

    def __init__(self, url: str, deadline: float) -> None:
        self.url = url
        self.deadline = deadline
        self.statuses: Counter[str] = Counter()
        self.health: list[float] = []
        self.memory: list[float] = []
        self.image = photograph(0)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline

    async def requests(self, number: int) -> None:
        """Ask for all kinds of things in turn."""
        data = f"data:image/jpeg;base64,{base64.b64encode(self.image).decode()}"
        broken = {"input": [data[: len(data) // 2]]}
        kinds: list[tuple[str, dict[str, object]]] = [
            ("upload", {"files": {"input": ("a.jpg", self.image)}}),
            ("base64", {"json": {"input": [data, data]}}),
            ("broken image", {"json": broken}),
            ("broken JSON", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
            ("private URL", {"json": {"input": "http://127.0.0.1:1/"}}),
            ("10,000 inputs", {"json": {"input": ["a"] * 10_000}}),
        ]
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while not self.over:
                name, request = kinds[number % len(kinds)]
                number += 1
                answer = await client.post("/v1/embeddings", **request)  # type: ignore[arg-type]
                self.statuses[f"{name}: {answer.status_code}"] += 1

    async def oversized(self) -> None:
        """Send bodies beyond the limit."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while not self.over:
                content = bytes(20_000_000)
                headers = {"Content-Type": "application/json"}
                try:
                    answer = await client.post("/v1/embeddings", content=content, headers=headers)
                    self.statuses[f"20 MB: {answer.status_code}"] += 1
                except httpx.TransportError:
                    self.statuses["20 MB: connection closed"] += 1
                await anyio.sleep(0.5)

    async def slow_loris(self) -> None:
        """Send a head a byte at a time, until the server has had enough, and again."""
        parts = urlsplit(self.url)
        while not self.over:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with await anyio.connect_tcp(parts.hostname or "", parts.port or 0) as stream:
                    for byte in b"POST /v1/embeddings HTTP/1.1\r\nHost: " + b"a" * 10_000:
                        await stream.send(bytes([byte]))
                        await anyio.sleep(0.2)
                        if self.over:
                            break
            self.statuses["slow head: closed"] += 1

    async def goes_away(self) -> None:
        """Ask, and hang up before the answer."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            while not self.over:
                with anyio.move_on_after(0.05):
                    await client.post("/v1/embeddings", files={"input": ("a.jpg", self.image)})
                self.statuses["client gone"] += 1

    async def watch(self, process: psutil.Process) -> None:
        """Time `/healthz`, and look at the server's memory."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while not self.over:
                began = time.perf_counter()
                answer = await client.get("/healthz")
                self.health.append(time.perf_counter() - began)
                self.statuses[f"healthz: {answer.status_code}"] += 1
                self.memory.append(process.memory_info().rss / 2**20)
                await anyio.sleep(0.05)


async def run(url: str, pid: int, seconds: float, connections: int) -> Load:
    async with httpx.AsyncClient(base_url=url) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # another process
            await anyio.sleep(0.1)
    load = Load(url, time.monotonic() + seconds)

    def start(group: TaskGroup) -> None:
        group.start_soon(load.watch, psutil.Process(pid))
        group.start_soon(load.oversized)
        group.start_soon(load.goes_away)
        for _ in range(LORISES):
            group.start_soon(load.slow_loris)
        for number in range(connections - LORISES - 2):
            group.start_soon(load.requests, number)

    async with anyio.create_task_group() as group:
        start(group)
    return load


def report(load: Load, seconds: float) -> int:
    for name, count in sorted(load.statuses.items()):
        print(f"{count:8d}  {name}")
    p50, p99 = np.percentile(load.health, [50, 99]) * 1000
    print(f"healthz p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(load.health) * 1000:.1f} ms")
    tenth = max(1, len(load.memory) // 10)
    early, late = (
        float(np.median(part)) for part in (load.memory[tenth : 2 * tenth], load.memory[-tenth:])
    )
    print(f"memory {early:.0f} MiB early, {late:.0f} MiB late, most {max(load.memory):.0f} MiB")
    done = sum(
        n for name, n in load.statuses.items() if name.endswith(": 200") and "health" not in name
    )
    print(f"{done / seconds:.1f} valid requests/s")
    bad = [name for name in load.statuses if name.endswith(": 500")]
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--model", default="gist-512", help="what to serve")
    options = parser.parse_args()
    command = [sys.executable, "-m", "aioembed", "serve", "--port", "0", "--model", options.model]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        match = re.search(r"http://\S+", server.stderr.readline())
        assert match, "the server did not start"
        load = anyio.run(run, match[0], server.pid, options.seconds, options.connections)
    finally:
        server.terminate()
        code = server.wait(60)
    print(f"exit code after SIGTERM: {code}")
    return report(load, options.seconds) or code


if __name__ == "__main__":
    sys.exit(main())
