"""Load and hostile clients, in the long form: what a server holds is bounded and given back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from .conftest import Server, picture, wait_ready
from .served import served

pytestmark = pytest.mark.slow

LOAD = Path(__file__).resolve().parents[2] / "benchmarks" / "server_load.py"
BODY = 16 << 20
DOCUMENTED = 800 << 20
"""Bytes that bodies may take in addition to the models, from docs/web-backends.md."""


def test_everything_is_answered_and_given_back_under_a_mixed_load() -> None:
    """No 500, no connection without an answer, no file or task left, exit code 0."""
    pytest.importorskip("psutil")
    command = [sys.executable, str(LOAD), "--seconds", "6", "--connections", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 or unanswered: none" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits the descriptors of a process")
def test_hostile_clients_take_bounded_memory_and_others_are_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unfinished bodies, slow heads and idle connections, more than there are descriptors."""
    resource = pytest.importorskip("resource")
    psutil = pytest.importorskip("psutil")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with served() as server:
            wait_ready(server.url)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
            children = psutil.Process(server.process.pid).children()
            (worker,) = (one for one in children if "spawn_main" in " ".join(one.cmdline()))
            before = worker.memory_info().rss
            most, slowest = anyio.run(_attack, server, lambda: int(worker.memory_info().rss))
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with capsys.disabled():
        print(
            f"\nmemory {before >> 20} MiB before, at most {most >> 20} MiB; "
            f"a valid request took {slowest:.1f} s at most"
        )
    assert most - before < DOCUMENTED


async def _attack(server: Server, memory: Callable[[], int]) -> tuple[int, float]:
    """Return the most memory, and the seconds that the slowest valid request took."""
    parts = urlsplit(server.url)
    post = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n"
    post += "Content-Type: application/json\r\n\r\n"
    attacks = [
        *[(post.encode(), BODY - (1 << 17))] * 200,
        *[(b"GET /healthz HTTP/1.1\r\nHost:", 0)] * 300,
        *[(b"", 0)] * 1100,
    ]

    async def hold(begun: bytes, more: int) -> None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            async with await anyio.connect_tcp(parts.hostname or "", parts.port or 0) as stream:
                await stream.send(begun)
                for _ in range(more >> 16):
                    await stream.send(bytes(1 << 16))
                await stream.receive()

    most, slowest = 0, 0.0
    async with anyio.create_task_group() as group:
        for one in attacks:
            group.start_soon(hold, *one)
        for _ in range(20):
            began = time.monotonic()
            async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
                answer = await client.post("/v1/embeddings", files={"input": picture()})
            assert answer.status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, memory())
        group.cancel_scope.cancel()
    return most, slowest
