"""A model whose inference and loading can be held up from the test."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.lowlevel import checkpoint
from blockbuster import blockbuster_ctx
from numpy.typing import NDArray
from PIL import Image

from aioembed import ImageEmbeddings
from aioembed.images import prepare
from aioembed.runtime import Program
from aioembed.testing import ImageEmbeddingsStandIn

from ..programs import TINY_IMAGE

Make = Callable[..., ImageEmbeddings]


class Brake:
    """Holds a blocking call up inside its worker thread until it is released."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Semaphore(0)
        self.calls = 0

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.calls += 1
        self._entered.release()
        assert self._open.wait(60)

    async def wait_entered(self) -> None:
        await anyio.to_thread.run_sync(self._entered.acquire)


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Let a call of the library that blocks asyncio's event loop raise."""
    with blockbuster_ctx("aioembed"):
        yield


@pytest.fixture(params=["program", "stand-in"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes handles of vectors of 512 values: with a program, and the stand-in that has none."""
    if request.param == "stand-in":
        return ImageEmbeddingsStandIn
    return partial(ImageEmbeddings, TINY_IMAGE)


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    """Holds up every native run that is started."""
    brake = Brake()
    start = Program.start

    def held(self: Program, *inputs: Any, method: str = "forward") -> None:
        def begin() -> None:
            brake.pass_through()
            start(self, *inputs, method=method)

        if brake.is_open:
            begin()
        else:
            threading.Thread(target=begin, daemon=True).start()

    monkeypatch.setattr(Program, "start", held)
    yield brake
    brake.release()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    """Holds up every native load."""
    brake = Brake()
    load = Program.load

    def held(path: Any, **options: Any) -> Program:
        brake.pass_through()
        return load(path, **options)

    monkeypatch.setattr(Program, "load", held)
    yield brake
    brake.release()


class LivingPrograms:
    """Counts programs from the start of their load to the end of their close."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._loading = 0
        self.most = 0
        load, close = Program.load, Program.close

        def counted_load(path: Any, **options: Any) -> Program:
            self._change(1)
            program = load(path, **options)
            with self._lock:
                self._loading -= 1
                self._open.add(id(program))
            return program

        def counted_close(program: Program) -> None:
            close(program)
            with self._lock:
                self._open.discard(id(program))

        patch.setattr(Program, "load", counted_load)
        patch.setattr(Program, "close", counted_close)

    def _change(self, change: int) -> None:
        with self._lock:
            self._loading += change
            self.most = max(self.most, self.count)

    @property
    def count(self) -> int:
        return len(self._open) + self._loading


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> LivingPrograms:
    """Counts programs that are in memory."""
    return LivingPrograms(monkeypatch)


class Prepared:
    """Counts images that were decoded and preprocessed, and so wait for a batch or are in one."""

    def __init__(self) -> None:
        self.count = 0

    async def wait(self, count: int) -> None:
        while self.count < count:
            await checkpoint()
        await anyio.wait_all_tasks_blocked()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Counts the images that have been prepared."""
    counter = Prepared()

    async def counted(*args: Any, **kwargs: Any) -> Any:
        inputs = await prepare(*args, **kwargs)
        counter.count += 1
        return inputs

    monkeypatch.setattr("aioembed.image.prepare", counted)
    return counter


@pytest.fixture
def quick_gc() -> Iterator[None]:
    """Freeze what was imported, so that a collection takes a millisecond."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class HeldPath:
    """The path of an image, which the worker thread that opens it has to wait for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.brake = Brake()

    def __fspath__(self) -> str:
        self.brake.pass_through()
        return str(self.path)


@pytest.fixture
def held_path(tmp_path: Path, pixels: NDArray[np.uint8]) -> HeldPath:
    """Holds up the decoding of an image."""
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return HeldPath(path)


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """One small image."""
    return np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
