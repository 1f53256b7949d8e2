"""What Prometheus reads: the server's requests, and each model's state and statistics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    StateSetMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from aioembed.state import Status

from .models import Served, ServedModels

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("model", "modality")
_OUTCOMES = ("succeeded", "failed", "cancelled", "timed_out", "refused")


class Metrics:
    """The figures of one server.

    Args:
        models: Read when Prometheus asks, so that nothing is counted twice.
    """

    def __init__(self, models: ServedModels) -> None:
        self._registry = CollectorRegistry()
        self.requests: Counter = Counter(
            "aioembed_requests",
            "Requests that were answered.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self.seconds: Histogram = Histogram(
            "aioembed_request_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            registry=self._registry,
        )
        self.running: Gauge = Gauge(
            "aioembed_requests_running", "Requests that run now.", registry=self._registry
        )
        self._registry.register(_ModelCollector(models))

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelCollector(Collector):
    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        yield from _states(self._models)
        yield from _calls(self._models)
        yield _stages(self._models)


def _states(models: ServedModels) -> Iterator[Metric]:
    status = StateSetMetricFamily(
        "aioembed_model_status", "Where it is in its life.", labels=_LABELS
    )
    fields = ("download_progress", "downloaded_bytes", "queue_depth")
    gauges = {
        name: GaugeMetricFamily(f"aioembed_model_{name}", f"`{name}` of its state.", labels=_LABELS)
        for name in fields
    }
    for one in models:
        state = one.handle.state
        status.add_metric(_values(one), {str(each): each is state.status for each in Status})
        for name, gauge in gauges.items():
            gauge.add_metric(_values(one), float(getattr(state, name)))
    yield status
    yield from gauges.values()


def _calls(models: ServedModels) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "aioembed_model_calls", "Embeddings, by how they ended.", labels=(*_LABELS, "outcome")
    )
    rate = GaugeMetricFamily(
        "aioembed_model_throughput", "Embeddings per second, of late.", labels=_LABELS
    )
    for one in models:
        statistics = one.handle.statistics()
        for outcome in _OUTCOMES:
            calls.add_metric((*_values(one), outcome), getattr(statistics, outcome))
        rate.add_metric(_values(one), statistics.throughput)
    yield calls
    yield rate


def _stages(models: ServedModels) -> Metric:
    stages = SummaryMetricFamily(
        "aioembed_model_stage_seconds", "Seconds in each stage.", labels=(*_LABELS, "stage")
    )
    for one in models:
        for stage, figures in one.handle.statistics().stages.items():
            stages.add_metric((*_values(one), stage), figures.calls, figures.total)
    return stages


def _values(one: Served) -> tuple[str, str]:
    return (one.name, one.modality)
