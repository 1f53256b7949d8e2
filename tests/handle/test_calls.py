"""Back pressure, deadlines, statistics: what surrounds a call of forward."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, Queueing, Threads, images
from aioembed import image as image_module
from aioembed.errors import (
    ForwardTimeout,
    ImageDecodeError,
    InternalError,
    InvalidConfig,
    InvalidModelOutput,
    ModelBusy,
)
from aioembed.runtime import Program
from aioembed.statistics import CallTiming

from ..programs import TINY_IMAGE
from .conftest import Brake, HeldPath, Prepared

pytestmark = pytest.mark.anyio
Pixels = NDArray[np.uint8]


@pytest.mark.parametrize("timeout", [0, -1, -0.5, math.nan, "5", True], ids=repr)
async def test_a_timeout_that_is_not_a_positive_number_is_refused(
    timeout: Any, pixels: Pixels
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(InvalidConfig, match="timeout"):
            await model.forward(pixels, timeout=timeout)
        assert (await model.forward(pixels, timeout=math.inf)).shape == (512,)


async def test_what_waits_past_its_deadline_is_never_decoded(
    inference: Brake, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    prepare = images.prepare

    async def counted(item: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.append(item)
        return await prepare(item, *args, **kwargs)

    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        inference.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(model.forward, pixels)
            await inference.wait_entered()
            await anyio.wait_all_tasks_blocked()
            monkeypatch.setattr(image_module, "prepare", counted)
            with pytest.raises(ForwardTimeout, match="within") as caught:
                await model.forward(b"late", timeout=0.01)
            assert isinstance(caught.value, TimeoutError)
            assert b"late" not in decoded
            assert model.state.queue_depth == 64
            inference.release()
        figures = model.statistics()
        assert (figures.submitted, figures.succeeded, figures.timed_out) == (65, 64, 1)


async def test_a_timeout_also_bounds_the_wait_for_the_load(loads: Brake, pixels: Pixels) -> None:
    loads.hold()
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await loads.wait_entered()
        with pytest.raises(ForwardTimeout):
            await model.forward(pixels, timeout=0.01)
        loads.release()
        assert (await model.forward(pixels)).shape == (512,)


async def test_refused_calls_are_counted_and_carry_the_queues_length(
    inference: Brake, pixels: Pixels
) -> None:
    async with ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_pending=1)) as model:
        await model.load()
        inference.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, pixels)
            await inference.wait_entered()
            for _ in range(3):
                with pytest.raises(ModelBusy) as caught:
                    await model.forward(pixels)
                assert (caught.value.code, caught.value.pending) == (104, 1)
            assert model.statistics().pending == 1
            inference.release()
        figures = model.statistics()
        assert (figures.submitted, figures.refused, figures.pending) == (1, 3, 0)


async def test_every_call_is_reported_to_on_call_and_one_that_raises_affects_no_caller(
    pixels: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    timings: list[CallTiming] = []

    def on_call(timing: CallTiming) -> None:
        timings.append(timing)
        if len(timings) == 1:
            raise RuntimeError("exporter")

    async with ImageEmbeddings(TINY_IMAGE, on_call=on_call) as model:
        assert (await model.forward(pixels)).shape == (512,)
        with pytest.raises(ImageDecodeError):
            await model.forward(b"junk")
    assert "exporter" in caplog.text
    good, bad = timings
    assert (good.outcome, good.error, good.batch_size) == ("succeeded", None, 1)
    assert good.stages.keys() == {"decode", "preprocess", "inference", "queue"}
    assert all(seconds >= 0 for seconds in good.stages.values())
    assert good.seconds == pytest.approx(sum(good.stages.values()))
    assert (bad.outcome, bad.batch_size) == ("failed", 0)
    assert isinstance(bad.error, ImageDecodeError)
    assert "inference" not in bad.stages


async def test_calls_that_wait_run_together_and_the_statistics_show_it(
    inference: Brake, prepared: Prepared, pixels: Pixels
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        inference.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.forward, pixels)
            await inference.wait_entered()
            for _ in range(4):
                tasks.start_soon(model.forward, pixels)
            await prepared.wait(5)
            inference.release()
        figures = model.statistics()
        assert dict(figures.batch_sizes) == {1: 1, 4: 1}
        assert figures.stages["inference"].calls == 5
        assert figures.throughput > 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_timeouts_work(inference: Brake, pixels: Pixels) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        inference.hold()
        running = asyncio.create_task(model.forward(pixels))
        await inference.wait_entered()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.forward(pixels), 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await model.forward(pixels)
        inference.release()
        assert (await running).shape == (512,)
        assert model.statistics().cancelled == 2
        assert model.state.queue_depth == 0


async def test_an_item_whose_inference_fails_does_so_alone(
    inference: Brake, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, collect = Program.start, Program.collect
    black_ones: set[Program] = set()

    def noted(self: Program, *inputs: Any, method: str = "forward") -> None:
        if any(float(image.max()) <= 0 for image in inputs[0].reshape(-1, *inputs[0].shape[-3:])):
            black_ones.add(self)
        start(self, *inputs, method=method)

    def spoilt(self: Program) -> Any:
        outputs = collect(self)
        if self in black_ones:
            black_ones.remove(self)
            return tuple(np.zeros_like(output) for output in outputs)
        return outputs

    monkeypatch.setattr(Program, "start", noted)
    monkeypatch.setattr(Program, "collect", spoilt)
    black = np.zeros((8, 8, 3), np.uint8)
    white = np.full((8, 8, 3), 255, np.uint8)
    outcomes: list[str] = []

    async def call(model: ImageEmbeddings, item: Pixels) -> None:
        try:
            await model.forward(item)
            outcomes.append("vector")
        except InvalidModelOutput:
            outcomes.append("error")

    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(call, model, black if number % 4 == 0 else white)
    assert sorted(outcomes) == ["error"] * 3 + ["vector"] * 9


async def test_a_caller_is_released_at_its_timeout_whatever_the_model_does(
    inference: Brake, pixels: Pixels
) -> None:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        await model.load()
        inference.hold()
        for _ in range(2):  # in a batch that runs, and waiting for one
            with pytest.raises(ForwardTimeout):
                await model.forward(pixels, timeout=0.05)
        assert model.state.is_generating
        inference.release()
        assert (await model.forward(pixels)).shape == (512,)


async def test_a_decoding_whose_caller_left_still_counts_as_a_thread(
    held_path: HeldPath,
) -> None:
    brake = held_path.brake
    async with ImageEmbeddings(TINY_IMAGE, threads=Threads(preprocess=1)) as model:
        await model.load()
        brake.hold()
        for _ in range(2):
            with pytest.raises(ForwardTimeout):
                await model.forward(held_path, timeout=0.05)
        assert brake.calls == 1
        brake.release()
        assert (await model.forward(held_path)).shape == (512,)
        assert brake.calls == 2


async def test_an_unexpected_error_of_a_call_is_typed_and_counted(
    caplog: pytest.LogCaptureFixture, pixels: Pixels
) -> None:
    class Odd:
        def __fspath__(self) -> str:
            raise LookupError("foreign")

    async with ImageEmbeddings(TINY_IMAGE) as model:
        with pytest.raises(InternalError, match="LookupError") as caught:
            await model.forward(Odd())
        assert isinstance(caught.value.__cause__, LookupError)
        assert "foreign" in caplog.text
        assert model.statistics().failed == 1
        assert (await model.forward(pixels)).shape == (512,)
