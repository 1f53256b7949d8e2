"""Background tasks and calls in worker threads: none is lost, and none blocks its caller."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar

import anyio
import pytest
import trio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from aioembed._tasks import BlockingCall, Task, current_loop, has_ended, run_in_thread, spawn
from aioembed.errors import ModelClosed

BACKENDS = ["asyncio", "trio"]
asynchronous = pytest.mark.anyio
tag: ContextVar[str] = ContextVar("tag", default="nobody's")


@asynchronous
async def test_a_task_keeps_its_result_and_its_error() -> None:
    async def double() -> int:
        await checkpoint()
        return 42

    async def fail() -> None:
        await checkpoint()
        raise LookupError("mine")

    good, bad = spawn(double, name="double"), spawn(fail, name="fail")
    assert not good.done
    await good.wait()
    await bad.wait()
    assert (good.result, good.error) == (42, None)
    assert isinstance(bad.error, LookupError)


@asynchronous
async def test_a_task_outlives_the_block_and_the_caller_that_started_it() -> None:
    ended = anyio.Event()
    finish = anyio.Event()
    tasks: list[Task[None]] = []

    async def work() -> None:
        await finish.wait()
        ended.set()

    with anyio.CancelScope() as scope:
        tasks.append(spawn(work, name="work"))
        scope.cancel()
        await checkpoint()
    gc.collect()
    finish.set()
    await ended.wait()
    await tasks[0].wait()
    assert tasks[0].error is None


@asynchronous
async def test_a_task_has_no_callers_context_variables() -> None:
    async def read() -> str:
        return tag.get()

    tag.set("the first caller's")
    task = spawn(read, name="read")
    await task.wait()
    assert task.result == "nobody's"


@asynchronous
async def test_cancelling_a_task_ends_it_and_cancelling_its_waiter_does_not() -> None:
    task = spawn(anyio.sleep_forever, name="sleep")
    with anyio.move_on_after(0):
        await task.wait()
    await anyio.wait_all_tasks_blocked()
    assert not task.done
    task.cancel()
    with anyio.fail_after(10):
        await task.wait()
    assert task.error is None


@asynchronous
async def test_a_task_that_is_cancelled_before_its_first_step_ends() -> None:
    task = spawn(anyio.sleep_forever, name="sleep")
    task.cancel()
    with anyio.fail_after(10):
        await task.wait()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="new in Python 3.12")
def test_with_eager_tasks_the_function_still_begins_later() -> None:
    async def main() -> None:
        factory = getattr(asyncio, "eager_task_factory")  # noqa: B009  # unknown to mypy before 3.12
        asyncio.get_running_loop().set_task_factory(factory)
        begun: list[bool] = []

        async def work() -> None:
            begun.append(True)

        task = spawn(work, name="work")
        assert not begun
        await task.wait()
        assert begun

    asyncio.run(main())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first_step", [True, False])
def test_a_loop_that_ends_cancels_its_tasks(backend: str, first_step: bool) -> None:
    tasks: list[Task[None]] = []
    cleaned: list[bool] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)

    async def main() -> None:
        tasks.append(spawn(work, name="work"))
        if first_step:
            await anyio.wait_all_tasks_blocked()

    anyio.run(main, backend=backend)
    assert tasks[0].done
    assert cleaned or not first_step


def test_a_task_cannot_be_started_on_a_trio_run_that_is_ending() -> None:
    refused: list[ModelClosed] = []

    async def outlive_main() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        spawn(outlive_main, name="first")
        await trio.testing.wait_all_tasks_blocked()

    def late() -> None:
        try:
            spawn(outlive_main, name="late")
        except ModelClosed as error:
            refused.append(error)

    class AfterMain(trio.abc.Instrument):
        def after_run(self) -> None:
            late()

    trio.run(main, instruments=[AfterMain()])
    assert len(refused) == 1


@asynchronous
async def test_errors_do_not_end_the_trio_run(anyio_backend_name: str) -> None:
    async def fail() -> None:
        raise RuntimeError("nothing to see")

    task = spawn(fail, name=anyio_backend_name)
    await task.wait()
    await checkpoint()
    assert isinstance(task.error, RuntimeError)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupt_in_a_task_ends_the_program(backend: str) -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        spawn(interrupt, name="interrupt")
        await anyio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_current_loop_is_known_and_distinguished_from_one_that_ended(backend: str) -> None:
    async def main() -> object:
        loop = current_loop()
        assert loop is not None
        assert loop is current_loop()
        assert not has_ended(loop)
        assert await to_thread.run_sync(current_loop) is None
        return loop

    assert current_loop() is None
    assert has_ended(anyio.run(main, backend=backend))


@asynchronous
async def test_a_cancelled_caller_of_a_thread_is_released_and_the_thread_keeps_its_place() -> None:
    limiter = anyio.CapacityLimiter(1)
    begun, finish = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        finish.wait(60)

    async def call() -> None:
        await run_in_thread(work, limiter=limiter)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await to_thread.run_sync(begun.wait)
        tasks.cancel_scope.cancel()
    assert limiter.borrowed_tokens == 1
    second = spawn(lambda: run_in_thread(lambda: 7, limiter=limiter), name="second")
    await anyio.wait_all_tasks_blocked()
    assert not second.done
    finish.set()
    with anyio.fail_after(10):
        await second.wait()
    assert second.result == 7
    assert limiter.borrowed_tokens == 0


@asynchronous
async def test_a_call_cancelled_before_its_thread_began_never_runs() -> None:
    limiter = anyio.CapacityLimiter(1)
    ran: list[bool] = []
    async with limiter:
        with anyio.move_on_after(0.01) as scope:
            await run_in_thread(lambda: ran.append(True), limiter=limiter)
        assert scope.cancelled_caught
    assert await run_in_thread(lambda: 1, limiter=limiter) == 1
    assert not ran


@asynchronous
@pytest.mark.parametrize("releasing", [True, False])
async def test_an_error_of_a_thread_leaves_no_cycle_behind(releasing: bool) -> None:
    class Large:
        pass

    def fail() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise LookupError

    kept: list[weakref.ref[Large]] = []
    gc.collect()
    gc.disable()
    try:
        with suppress(LookupError):
            await (run_in_thread(fail) if releasing else BlockingCall(fail).run())
        await checkpoint()
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_thread_that_outlives_its_loop_has_no_effect() -> None:
    begun, finish = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        finish.wait(60)

    async def main() -> None:
        call = asyncio.create_task(run_in_thread(work))
        await asyncio.to_thread(begun.wait)
        call.cancel()
        await asyncio.wait([call])

    asyncio.run(main())
    finish.set()
