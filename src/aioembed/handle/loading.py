"""One load at a time, shared by everyone who waits for it, without a task of its own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import numpy as np
from numpy.typing import NDArray

from .._tasks import BlockingCall
from ..errors import AioembedError, DownloadCancelled, ModelClosed
from ..scheduler import Scheduler
from ..state import Lifecycle, Status
from ..statistics import Stopwatch
from .loaded import Inputs, LoadedModel

__all__ = ["Job", "Loading", "Session"]


_MOST_FETCHED = 64


class Job(NamedTuple):
    """One item's inputs, and what times it."""

    inputs: Inputs
    stopwatch: Stopwatch


def run_jobs(model: LoadedModel, jobs: Sequence[Job]) -> list[NDArray[np.float32]]:
    """Run a model on a batch, in the worker thread, and tell each item's stopwatch."""
    began = time.perf_counter()
    embeddings = model.run([job.inputs for job in jobs])
    seconds = time.perf_counter() - began
    jobs[0].stopwatch.leads = True
    for job in jobs:
        job.stopwatch.batch_size = len(jobs)
        job.stopwatch.add("inference", seconds)
    return embeddings


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model and what runs it, from one load to its close.

    Attributes:
        model: The program and its contract.
        scheduler: Runs the model on prepared inputs.
        gate: Bounds how many items are prepared, or wait prepared, at the same time.
        intake: Bounds how many are fetched, or wait fetched, at the same time.
    """

    model: LoadedModel
    scheduler: Scheduler[Job, NDArray[np.float32]]
    gate: anyio.Semaphore
    intake: anyio.Semaphore

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        *,
        decoders: int,
        max_wait: float,
        on_running: Callable[[int], object],
    ) -> Session:
        """Return what runs a model.

        Args:
            model: The loaded model.
            decoders: How many threads prepare items.
            max_wait: Seconds that an item may wait for others to fill its batch.
            on_running: Told how many batches run.
        """
        max_batch, workers = model.contract.max_batch, len(model.replicas)
        return cls(
            model=model,
            scheduler=Scheduler(
                lambda jobs: run_jobs(model, jobs),
                max_batch=max_batch,
                workers=workers,
                max_wait=max_wait,
                on_running=on_running,
            ),
            gate=anyio.Semaphore(decoders + (workers + 1) * max_batch, fast_acquire=True),
            intake=anyio.Semaphore(_MOST_FETCHED, fast_acquire=True),
        )

    async def aclose(self) -> None:
        """Refuse what waits, wait for what runs, free the memory."""
        await self.scheduler.aclose()
        await BlockingCall(self.model.close).run()


class _Attempt:
    """A load under way: its leader runs it, the others wait for `done`."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.error: AioembedError | None = None


class Loading:
    """Holds the session, once there is one, and the load that leads to it.

    The first caller loads; if it is cancelled, another that waits takes over.

    Args:
        lifecycle: Told of every step.
        load: Fetches and loads; moves the lifecycle to `downloading` and `loading` itself.
    """

    def __init__(self, lifecycle: Lifecycle, load: Callable[[], Awaitable[Session]]) -> None:
        self._lifecycle = lifecycle
        self._load = load
        self._attempt: _Attempt | None = None
        self._closed = False
        self.session: Session | None = None

    @property
    def under_way(self) -> bool:
        """Whether somebody is loading."""
        return self._attempt is not None

    async def ensure(self) -> Session:
        """Return the session; load the model, or wait for the load that is under way.

        Raises:
            ModelClosed: Closed before or meanwhile.
            AioembedError: Why the load failed.
        """
        while self.session is None:
            if self._closed:
                raise ModelClosed("the model is closed: make a new handle")
            if self._attempt is None:
                return await self._lead()
            attempt = self._attempt
            await attempt.done.wait()
            if attempt.error is not None:
                raise attempt.error.with_traceback(None)
        return self.session

    async def aclose(self) -> None:
        """Stop a load that is under way, close the session, and refuse every later load."""
        self._closed = True
        while self._attempt is not None:
            self._attempt.scope.cancel()
            await self._attempt.done.wait()
        if self.session is not None:
            await self.session.aclose()
            self.session = None

    async def _lead(self) -> Session:
        attempt = self._attempt = _Attempt()
        try:
            with attempt.scope:
                await self._load_into_self()
        except AioembedError as error:
            attempt.error = error
            raise
        finally:
            self._attempt = None
            attempt.done.set()
        if self.session is None:
            raise ModelClosed("the model was closed while it was being loaded")
        return self.session

    async def _load_into_self(self) -> None:
        lifecycle = self._lifecycle
        if lifecycle.status is Status.FAILED:
            lifecycle.move(Status.IDLE, error=None, download_progress=0.0)
        try:
            self.session = await self._load()
            lifecycle.move(Status.READY)
        except DownloadCancelled:
            lifecycle.move(Status.IDLE, is_paused=False)
            raise
        except AioembedError as error:
            lifecycle.move(Status.FAILED, error=error)
            raise
        except BaseException:
            if lifecycle.status is not Status.IDLE:
                lifecycle.move(Status.IDLE)
            raise
