"""A handle driven through random orders of load, forward, cancel, stream and close."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aioembed import Err, ImageEmbeddings, ModelState, Ok, Queueing, Status
from aioembed.errors import (
    ForwardTimeout,
    ImageDecodeError,
    InvalidUserInput,
    ModelBusy,
    ModelClosed,
    ModelNotLoaded,
)
from aioembed.testing import ImageEmbeddingsStandIn

from ..programs import TINY_IMAGE

MAX_PENDING = 4
IMAGES = [
    np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for number in range(3)
]
SECONDS = 60
ALWAYS_ALLOWED = (ModelBusy, ModelNotLoaded, CancelledError)


class HandleMachine(RuleBasedStateMachine):
    """One handle on its own event loop, driven from the test's thread."""

    backend = "asyncio"

    def make(self, **options: Any) -> ImageEmbeddings:
        return ImageEmbeddings(TINY_IMAGE, **options)

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal: BlockingPortal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.model: ImageEmbeddings = self.portal.call(
            lambda: self.make(queueing=Queueing(max_pending=MAX_PENDING))
        )
        self.calls: list[tuple[Future[Any], Callable[[Future[Any]], None]]] = []
        self.cancelled: set[Future[Any]] = set()
        self.loaded = self.closed = self.was_closed = False
        self.vectors: dict[int, Any] = {}

    def start(self, call: Callable[[], Awaitable[Any]], check: Callable[[Any], None]) -> None:
        self.calls.append((self.portal.start_task_soon(call), check))

    def settle(self, place: int) -> None:
        """Wait for a call and judge how it ended."""
        future, check = self.calls.pop(place)
        try:
            result = future.result(SECONDS)
        except CancelledError:
            assert future in self.cancelled
        except ALWAYS_ALLOWED as error:
            assert not isinstance(error, ModelClosed) or self.was_closed  # noqa: PT017
        else:
            check(result)

    def check_vector(self, number: int) -> Callable[[Any], None]:
        def check(vector: Any) -> None:
            assert vector.shape == (512,)
            known = self.vectors.setdefault(number, vector)
            np.testing.assert_allclose(vector, known, atol=1e-5)

        return check

    @rule()
    def load(self) -> None:
        self.portal.call(self.model.load)
        self.loaded, self.closed = True, False

    @precondition(lambda self: not self.closed)
    @rule()
    def load_later(self) -> None:
        self.start(self.model.load, lambda _: None)

    @rule(number=st.integers(0, 2))
    def forward(self, number: int) -> None:
        self.start(lambda: self.model.forward(IMAGES[number]), self.check_vector(number))

    @rule()
    def forward_junk(self) -> None:
        async def call() -> bool:
            with pytest.raises(InvalidUserInput):
                await self.model.forward(b"junk")
            return True

        async def guarded() -> bool:
            try:
                return await call()
            except (ModelNotLoaded, ModelBusy):
                return False

        self.start(guarded, lambda _: None)

    @rule(number=st.integers(0, 2), seconds=st.sampled_from([1e-4, 0.005, 30.0]))
    def forward_in_time(self, number: int, seconds: float) -> None:
        async def call() -> Any:
            try:
                return await self.model.forward(IMAGES[number], timeout=seconds)
            except ForwardTimeout:
                return self.vectors.get(number, np.zeros(0))

        self.start(call, lambda vector: vector.size and self.check_vector(number)(vector))

    @rule(concurrency=st.integers(1, 5), ordered=st.booleans(), stop=st.integers(1, 6))
    def stream(self, concurrency: int, ordered: bool, stop: int) -> None:
        async def call() -> list[Any]:
            items: list[Any] = [IMAGES[0], b"junk", IMAGES[1], IMAGES[2]]
            seen: list[Any] = []
            async with self.model.embed_stream(
                items, concurrency=concurrency, ordered=ordered
            ) as results:
                async for result in results:
                    seen.append(result)
                    if len(seen) == stop:
                        break
            return seen

        def check(seen: list[Any]) -> None:
            assert len(seen) == min(stop, 4)
            for result in seen:
                assert isinstance(result, Err if result.key == 1 else Ok)

        self.start(call, check)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        future = self.calls[data.draw(st.integers(0, len(self.calls) - 1))][0]
        if future.cancel():
            self.cancelled.add(future)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        self.settle(data.draw(st.integers(0, len(self.calls) - 1)))

    @rule()
    def close(self) -> None:
        self.closed = self.was_closed = True
        self.loaded = False
        self.portal.call(self.model.aclose)

    @invariant()
    def the_state_is_consistent(self) -> None:
        state: ModelState = self.portal.call(lambda: self.model.state)
        assert 0 <= state.queue_depth <= MAX_PENDING
        assert (state.status is Status.CLOSED) == self.closed
        if self.loaded and not self.closed:
            assert state.is_ready

    def teardown(self) -> None:
        with self.stack:
            while self.calls:
                self.settle(0)
            self.portal.call(self.model.load)
            vector = self.portal.call(self.model.forward, IMAGES[0])
            self.check_vector(0)(vector)
            figures = self.portal.call(self.model.statistics)
            ended = figures.succeeded + figures.failed + figures.cancelled + figures.timed_out
            assert figures.submitted == ended
            assert figures.pending == 0
            self.portal.call(self.model.aclose)


class TrioHandleMachine(HandleMachine):
    backend = "trio"


class StandInMachine(HandleMachine):
    """The handle that users' tests have in place of one with a model."""

    def make(self, **options: Any) -> ImageEmbeddings:
        model = ImageEmbeddingsStandIn(**options)
        model.set_result(b"junk", ImageDecodeError("junk"))
        model.delay = model.load_delay = 0.001
        return model


_SETTINGS = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestOnAsyncio = HandleMachine.TestCase
TestOnAsyncio.settings = _SETTINGS
TestOnTrio = TrioHandleMachine.TestCase
TestOnTrio.settings = _SETTINGS
TestStandIn = StandInMachine.TestCase
TestStandIn.settings = _SETTINGS
