"""A model whose inference and loading can be held up from the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import anyio
import numpy as np
import pytest
from blockbuster import blockbuster_ctx
from numpy.typing import NDArray

from aioembed.handle import Inputs, LoadedModel, loader


class Brake:
    """Holds a blocking call up inside its worker thread until it is released."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Semaphore(0)
        self.calls = 0

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


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    """Holds up every native run."""
    brake = Brake()
    run = LoadedModel.run

    def held(self: LoadedModel, batch: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        brake.pass_through()
        return run(self, batch)

    monkeypatch.setattr(LoadedModel, "run", held)
    yield brake
    brake.release()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    """Holds up every native load."""
    brake = Brake()
    load = loader.Loader._load_files

    def held(self: loader.Loader, files: object) -> LoadedModel:
        brake.pass_through()
        return load(self, files)  # type: ignore[arg-type]

    monkeypatch.setattr(loader.Loader, "_load_files", held)
    yield brake
    brake.release()


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """One small image."""
    return np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
