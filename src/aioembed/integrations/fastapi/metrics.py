"""Metrics for Prometheus, of all worker processes: requests, models, stages of calls, memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from aioembed import CallTiming
from aioembed.models import Modality
from aioembed.state import Status

from .models import Models, Served

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_MODEL = ("model", "modality")
_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_MEMORY = Path("/proc/self/statm")


class Metrics:
    """The metrics of one server.

    With `PROMETHEUS_MULTIPROC_DIR` set before Python starts, as `aioembed serve --workers` does,
    they are those of all worker processes together, by prometheus_client's own way.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests: Counter = Counter(
            "aioembed_requests",
            "Requests that were answered.",
            ("method", "path", "status"),
            registry=registry,
        )
        self.seconds: Histogram = Histogram(
            "aioembed_request_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            registry=registry,
        )
        self.running: Gauge = _gauge(registry, "requests_running", "Requests that run now.")
        self.embeddings: Counter = Counter(
            "aioembed_model_calls",
            "Inputs of requests, by how their embedding ended.",
            (*_MODEL, "outcome"),
            registry=registry,
        )
        self._stages = Histogram(
            "aioembed_model_stage_seconds",
            "Seconds in each stage of an embedding.",
            (*_MODEL, "stage"),
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self._status = _gauge(
            registry, "model_status", "Processes in which it is in this status.", *_MODEL, "status"
        )
        self._progress = _gauge(
            registry, "model_download_progress", "0 to 1.", *_MODEL, mode="livemin"
        )
        self._pending = _gauge(
            registry, "model_queue_depth", "Embeddings that wait or run.", *_MODEL
        )
        self._memory = _gauge(registry, "resident_memory_bytes", "Of the server's processes.")

    def on_call(self, name: str, modality: Modality) -> Callable[[CallTiming], None]:
        """Return a handle's `on_call`, which counts its calls by stage.

        Args:
            name: The model's.
            modality: What it embeds.
        """

        def count(timing: CallTiming) -> None:
            for stage, seconds in timing.stages.items():
                self._stages.labels(name, modality, stage).observe(seconds)

        return count

    def watch(self, models: Models) -> Callable[[], None]:
        """Follow the models' states; return what ends that."""
        ends = ExitStack()
        for one in models:
            ends.callback(self._watch(one))
        return ends.close

    def _watch(self, one: Served) -> Callable[[], None]:
        labels = (one.name, one.modality)
        gauges = {each: self._status.labels(*labels, str(each)) for each in Status}
        progress, pending = self._progress.labels(*labels), self._pending.labels(*labels)
        shown: Status | None = None

        def changed() -> None:
            nonlocal shown
            state = one.handle.state
            pending.set(state.queue_depth)
            if state.status is not shown:
                if shown is not None:
                    gauges[shown].set(0)
                gauges[state.status].set(1)
                shown = state.status
            progress.set(state.download_progress)

        changed()
        return one.handle.subscribe(changed)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if _MEMORY.exists():
            pages = int(_MEMORY.read_text().split()[1])
            self._memory.set(pages * os.sysconf("SC_PAGESIZE"))
        registry = self._registry
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is not None:
            _forget_dead_processes(Path(folder))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_processes(folder: Path) -> None:
    """Remove the gauges of workers that have ended; their counters remain."""
    for path in folder.glob("gauge_live*.db"):
        process = path.stem.rpartition("_")[2]
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, PermissionError):  # or another user's process has its number
            mark_process_dead(int(process), str(folder))  # type: ignore[no-untyped-call]


def _gauge(
    registry: CollectorRegistry, name: str, text: str, *labels: str, mode: str = "livesum"
) -> Gauge:
    return Gauge(
        f"aioembed_{name}",
        text,
        labels,
        registry=registry,
        multiprocess_mode=mode,  # type: ignore[arg-type]  # one of its literals
    )
