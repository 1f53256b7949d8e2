"""Downloads from a server with random faults; some of the downloading processes are killed.

    python benchmarks/chaos_download.py [--downloads 300] [--kills 20] [--seed 1]

Each download is of a different file of 5 MB. The server cuts connections, stalls, sends wrong
ranges, flips bytes, answers 503 and changes ETags. A third of the downloads know the published
hash, a third get it from the server's `X-Linked-Etag`. For the last third the hash is unknown and
the file changes between two versions, without flipped bytes, which nothing could detect.
Every successful download must have the right hash, and no failed one may leave a file that the
cache returns. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel

from aioembed.download import Cache, Fetcher, FetchLimits, Resource, Timing
from aioembed.errors import AioembedError
from aioembed.testing._loopback import LoopbackServer, Reply, Request, file_reply

SIZE = 5_000_000
LIMITS = FetchLimits(connect=2.0, stall=0.5, retries=5)
SIDE_BY_SIDE = 6
CHILD = """
import sys, anyio
from aioembed.download import Cache, Fetcher, Resource
async def main():
    await Fetcher(Cache(sys.argv[1])).fetch([Resource(sys.argv[2], sys.argv[3] or None)])
anyio.run(main)
"""


@dataclass(frozen=True)
class Version:
    """What a file is at one time."""

    content: bytes
    sha256: str
    etag: str


def make_version(rng: random.Random) -> Version:
    content = rng.randbytes(SIZE)
    digest = hashlib.sha256(content).hexdigest()
    return Version(content, digest, f'"{digest[:16]}"')


class ChaosServer:
    """Makes each answer wrong in some way with a chance of 6 in 10."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.versions = [make_version(self.rng) for _ in range(2)]
        self.faults: collections.Counter[str] = collections.Counter()
        self.gentle: set[str] = set()

    def answer(self, request: Request) -> Reply:
        """Answer, rightly or not."""
        mode = request.path.split("/")[1]
        version = self.versions[self.rng.random() < 0.3 if mode == "unknown" else 0]
        reply = file_reply(request, version.content, etag=version.etag)
        if mode == "linked":
            headers = {"X-Linked-Etag": f'"{version.sha256}"', "X-Linked-Size": str(SIZE)}
            reply = replace(reply, headers={**reply.headers, **headers})
        if request.path in self.gentle:
            return replace(reply, bytes_per_second=2e6)
        if self.rng.random() < 0.4:
            return reply
        faults = ["cut", "stall", "lie", "etag", "unavailable", "shift"]
        fault = self.rng.choice(faults[:5] if mode == "unknown" else [*faults, "flip", "flip"])
        self.faults[fault] += 1
        return self.spoil(reply, fault)

    def spoil(self, reply: Reply, fault: str) -> Reply:
        """Return `reply` with a fault in it."""
        body = reply.body or b"\0"
        where = self.rng.randrange(len(body))
        etag = {**reply.headers, "ETag": f'"{where}"'}
        claim = {**reply.headers, "Content-Range": f"bytes {where}-{SIZE - 1}/{SIZE}"}
        flipped = body[:where] + bytes([body[where] ^ 4]) + body[where + 1 :]
        spoilt = {
            "cut": replace(reply, cut_after=where),
            "stall": replace(reply, hang_after=where),
            "lie": replace(reply, status=206, headers=claim),
            "etag": replace(reply, headers=etag, cut_after=where),
            "unavailable": Reply(503, headers={"Retry-After": "1"}),
            "shift": replace(reply, body=body[1:] + b"\0"),
            "flip": replace(reply, body=flipped),
        }
        return spoilt[fault]


class Run:
    """The downloads, what came of them, and what must not have happened."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chaos = ChaosServer(seed)
        self.cache = Cache(folder)
        self.server = LoopbackServer(self.chaos.answer)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []

    def resource(self, index: int) -> Resource:
        """Return what download `index` is of."""
        mode = ("published", "linked", "unknown")[index % 3]
        sha256 = self.chaos.versions[0].sha256 if mode == "published" else None
        return Resource(f"{self.server.origin}/{mode}/{index}/model.pte", sha256)

    async def download(self, index: int) -> None:
        """Download, and check what is in the cache then."""
        resource = self.resource(index)
        fetcher = Fetcher(self.cache, limits=LIMITS, timing=Timing(sleep=_no_wait))
        try:
            [file] = await fetcher.fetch([resource])
        except AioembedError as exc:
            self.outcomes[type(exc).__name__] += 1
            if await self.cache.find(resource) is not None:
                self.violations.append(f"{index}: {exc!r} left a file that loads")
            return
        self.outcomes["succeeded"] += 1
        right = {v.sha256 for v in self.chaos.versions[: 2 if "unknown" in resource.url else 1]}
        content = await anyio.Path(file.path).read_bytes()
        if hashlib.sha256(content).hexdigest() not in right:
            self.violations.append(f"{index}: wrong bytes in the cache")

    async def killed(self, index: int) -> None:
        """Kill a process in mid-download; then download the file here."""
        resource = self.resource(index)
        self.chaos.gentle.add(f"/{resource.url.split('/', 3)[3]}")
        command = [sys.executable, "-c", CHILD, str(self.cache.directory), resource.url]
        command.append(resource.sha256 or "")
        async with await anyio.open_process(command) as process:
            folder = self.cache.entry(resource).folder
            threshold = self.chaos.rng.randrange(1_000_000, SIZE - 1_000_000)
            await self.server.wait_for(lambda: partial_bytes(folder) >= threshold)
            process.send_signal(signal.SIGKILL)
            if await process.wait() != -signal.SIGKILL:
                self.violations.append(f"{index}: the process ended before it was killed")
        self.chaos.gentle.clear()
        if await self.cache.find(resource) is not None:
            self.violations.append(f"{index}: a killed download left a file that loads")
        self.outcomes["killed, then downloaded again"] += 1
        await self.download(index)

    async def all(self, downloads: int, kills: int) -> None:
        """Do all of it."""
        slots = anyio.CapacityLimiter(SIDE_BY_SIDE)

        async def one(index: int) -> None:
            async with slots:
                await self.download(index)

        async with self.server:
            for index in range(kills):
                await self.killed(index)
            async with anyio.create_task_group() as group:
                for index in range(kills, downloads):
                    group.start_soon(one, index)
            left = await self.cache.prune()
            await self.check_the_cache()
        print(f"  left by interrupted downloads and reclaimed: {left.freed / 1e6:.1f} MB")

    async def check_the_cache(self) -> None:
        """Hash every file that the cache has."""
        files = await self.cache.list()
        if len(files) != self.outcomes["succeeded"]:
            self.violations.append(f"{len(files)} files in the cache")
        for file in files:
            await self.cache.verify(file)


def partial_bytes(folder: Path) -> int:
    """Return how much of an unfinished download there is."""
    return sum(path.stat().st_size for path in folder.glob("partial*/data"))


async def _no_wait(_seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--downloads", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), arguments.seed)
        print(f"{arguments.downloads} downloads of 5 MB, seed {arguments.seed}")
        anyio.run(run.all, arguments.downloads, arguments.kills)
    print(f"  requests: {len(run.server.requests)}, faults: {dict(run.chaos.faults)}")
    print(f"  outcomes: {dict(run.outcomes)}")
    print(f"  wrong files and leaks: {len(run.violations)}", *run.violations, sep="\n    ")
    print(f"  {time.perf_counter() - began:.0f} s")
    sys.exit(1 if run.violations else 0)


if __name__ == "__main__":
    main()
