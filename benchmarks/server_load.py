"""Mixed load on `aioembed serve`: valid, broken, oversized and slow requests on 64 connections.

    python benchmarks/server_load.py [--seconds 60] [--connections 64] [--model efficientnet-lite0]

A separate process times `/healthz` while the server is idle, while it only refuses, and at full
load, and a server that does nothing for the machine's floor. Prints the statuses, the latencies,
and the server's memory, files and threads over time. The exit code is 1 if a request was answered
with 500 or not at all, or if the server did not release everything at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from http_load import (
    Connection,
    Server,
    address,
    health_probe,
    photograph,
    probed,
    request,
    served,
    upload,
)

TRICKLE = 0.2
"""Seconds between two bytes of a slow client."""
FLAT = 0.05
"""Most growth of the memory between the first and the last quarter, as a share."""

LONG_ENOUGH = 30.0
"""Seconds after which the memory has settled."""

Kind = tuple[str, bytes]


def refused_kinds() -> list[Kind]:
    """Requests that end before anything is embedded."""
    return [
        ("broken JSON", request(b'{"input": [')),
        ("nested JSON", request(b"[" * 50_000)),
        ("private URL", request(b'{"input": "http://127.0.0.1:1/"}')),
        ("10,000 inputs", request(json.dumps({"input": ["a"] * 10_000}).encode())),
        ("unknown model", request(b'{"input": "a", "model": "gpt"}')),
        ("text/plain", request(b"a", "text/plain")),
    ]


def all_kinds() -> list[Kind]:
    """The same, with valid ones among them."""
    image = photograph()
    data = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    several = json.dumps({"input": [data] * 4, "encoding_format": "base64"})
    valid = [
        ("upload", upload(image)),
        ("data URI", request(json.dumps({"input": data}).encode())),
        ("four images", request(several.encode())),
        ("similarity", upload(image, "images", "/v1/similarity")),
    ]
    broken = [
        ("cut image", upload(image[: len(image) // 2])),
        ("EPS", upload(b"%!PS-Adobe-3.0 EPSF-3.0\n")),
    ]
    return [one for pair in zip(valid, refused_kinds(), strict=False) for one in pair] + broken


class Load:
    """Sends requests until the time is up, and keeps what came of them."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.statuses: Counter[str] = Counter()
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._until - time.monotonic()

    async def requests(self, kinds: list[Kind], number: int) -> None:
        """Ask for all kinds of things in turn."""
        connection = Connection(self.url)
        while self.left > 0:
            name, raw = kinds[number % len(kinds)]
            number += 1
            await self._ask(connection, name, raw)
        await connection.close()

    async def oversized(self, *, chunked: bool) -> None:
        """Send bodies beyond the limit, with and without saying so before."""
        raw = request(bytes(20_000_000))
        if chunked:
            head, _, body = raw.partition(b"\r\n\r\n")
            head = head.rpartition(b"\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            raw = head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        connection = Connection(self.url)
        while self.left > 0:
            await self._ask(connection, "chunked 20 MB" if chunked else "20 MB", raw)
            await asyncio.sleep(0.5)
        await connection.close()

    async def slow(self, name: str, raw: bytes, *, at_once: int = 0) -> None:
        """Send a byte at a time, until the server has had enough, and again."""
        while self.left > 0:
            reader, writer = await asyncio.open_connection(*address(self.url))
            answer = asyncio.create_task(reader.read(12))
            writer.write(raw[:at_once])
            for byte in raw[at_once:]:
                writer.write(bytes([byte]))
                await asyncio.wait([answer], timeout=TRICKLE)
                if answer.done() or self.left <= 0:
                    break
            answer.cancel()
            with suppress(OSError, asyncio.CancelledError):
                said = await answer
                self.statuses[f"{name}: {said[9:].decode() or 'closed'}"] += 1
            writer.transport.abort()

    async def goes_away(self, raw: bytes) -> None:
        """Ask, and hang up before the answer."""
        while self.left > 0:
            with suppress(asyncio.TimeoutError):
                async with asyncio.timeout(0.05):
                    await Connection(self.url).ask(raw)
            self.statuses["hung up"] += 1

    async def deaf(self) -> None:
        """Follow the states without reading them."""
        _, writer = await asyncio.open_connection(*address(self.url))
        writer.write(request(path="/v1/state/stream", method="GET"))
        await asyncio.sleep(self.left)
        self.statuses["state stream: unread"] += 1
        writer.transport.abort()

    async def _ask(self, connection: Connection, name: str, raw: bytes) -> None:
        try:
            self.statuses[f"{name}: {await connection.ask(raw)}"] += 1
        except OSError as exc:
            self.statuses[f"{name}: {type(exc).__name__}"] += 1


async def refusals(load: Load, connections: int) -> None:
    """Let the server refuse on some of the connections."""
    kinds = refused_kinds()
    await asyncio.gather(*(load.requests(kinds, number) for number in range(connections)))


async def everything(load: Load, connections: int) -> None:
    """Slow, oversized and impatient clients on a quarter of the connections, a mix on the rest."""
    kinds = all_kinds()
    raw = request(b" " * 1000)
    head = raw.index(b"\r\n\r\n") + 4
    others = [load.slow("slow head", raw) for _ in range(6)]
    others += [load.slow("slow body", raw, at_once=head) for _ in range(4)]
    others += [load.oversized(chunked=chunked) for chunked in (False, True)]
    others += [load.goes_away(kinds[0][1]) for _ in range(2)]
    others += [load.deaf() for _ in range(2)]
    rest = max(1, connections - len(others))
    await asyncio.gather(*others, *(load.requests(kinds, number) for number in range(rest)))


class Holdings:
    """What the server's worker holds, over time."""

    def __init__(self, server: Server) -> None:
        children = psutil.Process(server.process.pid).children()
        (self._process,) = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
        self._process.cpu_percent()
        self.memory: list[float] = []
        self.files: list[int] = []
        self.threads: list[int] = []
        self.cpu: list[float] = []

    def look(self) -> None:
        """Look once."""
        with self._process.oneshot():
            self.memory.append(self._process.memory_info().rss / 2**20)
            self.threads.append(self._process.num_threads())
        self.files.append(self._process.num_fds())
        self.cpu.append(self._process.cpu_percent() / 100)

    async def watch(self) -> None:
        """Look four times a second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(0.25)


Sending = Callable[[Load, int], Awaitable[None]]


async def phase(
    name: str, sending: Sending, urls: tuple[str, str], options: argparse.Namespace, seconds: float
) -> Load:
    """Send for some seconds while `/healthz` is timed, and print its latencies."""
    load = Load(urls[0], seconds)
    probe = health_probe(seconds, *urls)
    await sending(load, options.connections)
    if load.left > 0:
        await asyncio.sleep(load.left)
    ours, bare = await asyncio.to_thread(probed, probe)
    print(f"{name:14} healthz {latencies(ours)};  server that does nothing {latencies(bare)}")
    return load


def quantile(taken: list[float], percent: int) -> float:
    return statistics.quantiles(taken, n=100, method="inclusive")[percent - 1] * 1e3


def latencies(taken: list[float]) -> str:
    return (
        f"p50 {quantile(taken, 50):5.1f}, p99 {quantile(taken, 99):5.1f}, "
        f"longest {max(taken) * 1e3:5.1f} ms (n={len(taken)})"
    )


async def idle(_load: Load, _connections: int) -> None:
    """Send nothing."""


async def settled(url: str, holdings: Holdings, files: int) -> bool:
    """Whether, within 20 s, no request runs, nothing waits, and the files are closed."""
    async with httpx.AsyncClient(base_url=url) as client:
        for _ in range(40):
            figures = (await client.get("/metrics")).text
            holdings.look()
            lines = figures.splitlines()
            idle_now = "aioembed_requests_running 1.0" in lines and not any(
                line.startswith("aioembed_model_queue_depth") and not line.endswith(" 0.0")
                for line in lines
            )
            if idle_now and holdings.files[-1] <= files + 1:
                return True
            await asyncio.sleep(0.5)
    return False


async def run(server: Server, bare: Server, options: argparse.Namespace) -> bool:
    async with httpx.AsyncClient(base_url=server.url) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.1)
    urls, short = (server.url, bare.url), max(2.0, options.seconds / 6)
    holdings = Holdings(server)
    await phase("idle", idle, urls, options, short)
    holdings.look()
    files = holdings.files[-1]
    await phase("refusals only", refusals, urls, options, short)
    warm = Load(server.url, options.seconds / 4)
    await everything(warm, options.connections)
    holdings = Holdings(server)
    watching = asyncio.create_task(holdings.watch())
    load = await phase("full load", everything, urls, options, options.seconds)
    watching.cancel()
    returned = await settled(server.url, holdings, files)
    return report(load, holdings, files, options.seconds, returned=returned)


def report(load: Load, held: Holdings, files: int, seconds: float, *, returned: bool) -> bool:
    """Print what came of it; return whether everything was answered and given back."""
    for name, count in sorted(load.statuses.items()):
        print(f"{count:8d}  {name}")
    done = sum(count for name, count in load.statuses.items() if name.endswith(": 200"))
    everyone = sum(load.statuses.values())
    print(
        f"{everyone / seconds:.0f} requests/s, {done / seconds:.0f} of them 200; "
        f"the server used {statistics.mean(held.cpu[1:-1]):.2f} CPUs"
    )
    quarter = max(1, len(held.memory) // 4)
    early, late = (
        statistics.median(part) for part in (held.memory[:quarter], held.memory[-quarter:])
    )
    told = "flat" if late <= early * (1 + FLAT) else "not flat"
    told = told if seconds >= LONG_ENOUGH else f"too short a run to tell ({told})"
    print(
        f"memory {early:.0f} MiB in the first quarter, {late:.0f} in the last, most "
        f"{max(held.memory):.0f}: {told}"
    )
    print(
        f"files {files} before, at most {max(held.files)}, {held.files[-1]} after; threads at most "
        f"{max(held.threads)}, {held.threads[-1]} after: {'no' if returned else 'a'} leak"
    )
    failed = [name for name in load.statuses if name.endswith((": 500", "Error"))]
    print(f"500 or unanswered: {', '.join(failed) or 'none'}")
    return told != "not flat" and returned and not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--model", default="efficientnet-lite0", help="what to serve")
    options = parser.parse_args()
    serve = [sys.executable, "-m", "aioembed", "serve", "--port", "0", "--model", options.model]
    bare = [sys.executable, str(Path(__file__).with_name("http_load.py")), "bare"]
    print(f"{options.model} on {os.cpu_count()} CPUs, {options.connections} connections")
    with served(serve) as server, served(bare) as beside:
        sound = asyncio.run(run(server, beside, options))
    print(f"exit code after SIGTERM: {server.exit_code}")
    return 0 if sound and server.exit_code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
