"""A scripted server, a cache folder and a clock that does not wait."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioembed.download import Cache, Fetcher, FetchLimits, Resource, Timing
from aioembed.testing._loopback import LoopbackServer, Reply, Request, file_reply


def partial_bytes(entry: Path) -> int:
    """Bytes of the partial files in an entry's folder."""
    return sum(path.stat().st_size for path in entry.glob("partial*/data"))


Step = Reply | Callable[[Request], Reply]


@pytest.fixture
def anyio_backend_options() -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "AIOEMBED_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def content() -> bytes:
    return random.Random(7).randbytes(300_000)


@pytest.fixture
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Waits:
    """A clock for retries: records the requested sleeps and returns immediately."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    @property
    def timing(self) -> Timing:
        return Timing(sleep=self.sleep, jitter=lambda: 1.0)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def make_fetcher(cache: Cache, waits: Waits) -> Callable[..., Fetcher]:
    def make(**options: Any) -> Fetcher:
        options.setdefault("timing", waits.timing)
        options.setdefault("limits", FetchLimits(connect=5, stall=5, retries=3))
        return Fetcher(options.pop("cache", cache), **options)

    return make


class Scripted(LoopbackServer):
    """Answers the n-th request with the n-th step, and further ones with the last."""

    def __init__(self, *steps: Step) -> None:
        super().__init__(self._next)
        self.steps = steps
        self._turn = 0

    def _next(self, request: Request) -> Reply:
        step = self.steps[min(self._turn, len(self.steps) - 1)]
        self._turn += 1
        return step if isinstance(step, Reply) else step(request)

    def resource(self, **fields: Any) -> Resource:
        return Resource(f"{self.origin}/model.pte", **fields)

    @property
    def ranges(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.requests]


@pytest.fixture
def scripted() -> Callable[..., Scripted]:
    return Scripted


@pytest.fixture
def serve_file(content: bytes) -> Callable[..., Step]:
    """Make a step that serves the content properly, with changes."""

    def make(etag: str | None = '"v1"', body: bytes = content, **changes: Any) -> Step:
        def step(request: Request) -> Reply:
            from dataclasses import replace

            return replace(file_reply(request, body, etag=etag), **changes)

        return step

    return make


@pytest.fixture
def leftovers(cache: Cache) -> Callable[[], list[str]]:
    """What lies in the cache besides locks, as paths within an entry's folder.

    The part of a file's name that holds its hash is left out.
    """

    def look() -> list[str]:
        if not cache.directory.exists():
            return []
        files = (p for p in cache.directory.rglob("*") if p.is_file())
        relative = (p.relative_to(cache.directory).parts for p in files)
        names = ("/".join(parts[1:]) for parts in relative if parts[0] != ".locks")
        return sorted(re.sub(r"\.[0-9a-f]{16}(?=\.)", "", name) for name in names)

    return look
