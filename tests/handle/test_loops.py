"""A handle that is open on one event loop immediately refuses calls from any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from aioembed import ImageEmbeddings
from aioembed.errors import WrongEventLoop

from .conftest import Make

IMAGE = np.zeros((9, 9, 3), np.uint8)
BACKENDS = ["asyncio", "trio"]


async def consume(iterable: Any) -> None:
    async for _ in iterable:
        pass


async def enter(model: Any) -> None:
    async with model:
        pass


CALLS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda model: model.forward(IMAGE),
    "embed": lambda model: model.embed(IMAGE),
    "forward with a timeout": lambda model: model.forward(IMAGE, timeout=5),
    "forward_batch": lambda model: model.forward_batch([IMAGE]),
    "embed_stream": lambda model: consume(model.embed_stream([IMAGE])),
    "load": lambda model: model.load(),
    "aclose": lambda model: model.aclose(),
    "async with": enter,
    "wait_for": lambda model: model.wait_for("ready"),
    "states": lambda model: consume(model.states()),
}
PLAIN_CALLS: dict[str, Callable[[Any], Any]] = {
    "subscribe": lambda model: model.subscribe(print),
    "states": lambda model: model.states(),
    "embed_stream": lambda model: model.embed_stream([IMAGE]),
    "pause_download": lambda model: model.pause_download(),
    "resume_download": lambda model: model.resume_download(),
    "cancel_download": lambda model: model.cancel_download(),
}


@pytest.fixture(params=BACKENDS)
def home(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    with start_blocking_portal(request.param) as portal:
        yield portal


@pytest.fixture
def loaded(home: BlockingPortal, make: Make) -> Iterator[ImageEmbeddings]:
    model = make()
    home.call(model.load)
    yield model
    home.call(model.aclose)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_from_another_loop_is_refused_immediately(
    loaded: ImageEmbeddings, home: BlockingPortal, backend: str, name: str
) -> None:
    async def call() -> None:
        with anyio.fail_after(30):
            await CALLS[name](loaded)

    with pytest.raises(WrongEventLoop, match="another event loop"):
        anyio.run(call, backend=backend)
    assert home.call(loaded.forward, IMAGE).shape == (512,)


@pytest.mark.parametrize("name", PLAIN_CALLS)
def test_a_plain_call_from_another_thread_is_refused_immediately(
    loaded: ImageEmbeddings, name: str
) -> None:
    with pytest.raises(WrongEventLoop, match="another event loop"):
        PLAIN_CALLS[name](loaded)


def test_the_state_may_be_read_from_any_thread(loaded: ImageEmbeddings) -> None:
    assert loaded.state.is_ready
    assert loaded.statistics().pending == 0


def test_a_handle_that_was_never_opened_may_be_watched_before_a_loop_runs(make: Make) -> None:
    seen: list[str] = []

    async def main() -> None:
        async with model:
            await model.wait_for("ready")

    model = make()
    model.subscribe(lambda: seen.append(model.state.status))
    anyio.run(main)
    assert "ready" in seen
