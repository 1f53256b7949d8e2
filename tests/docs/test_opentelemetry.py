"""The page on adapters reports to OpenTelemetry by its conventions for generative AI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aioembed.errors import AioembedError

_PAGE = Path(__file__).parents[2] / "docs/adapters.md"


def test_a_call_becomes_a_span_and_a_duration() -> None:
    examples = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (text for text in examples if "opentelemetry" in text)
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    meters, tracers = MeterProvider([reader]), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    own = example.replace("metrics.get_meter(", "meters.get_meter(")  # not the process's providers
    own = own.replace("trace.get_tracer(", "tracers.get_tracer(")
    names: dict[str, Any] = {"__name__": "__main__", "meters": meters, "tracers": tracers}
    exec(compile(own, str(_PAGE), "exec"), names)

    async def fail() -> None:
        async with names["model"] as model:
            with pytest.raises(AioembedError):
                await model.forward(b"not an image")

    anyio.run(fail)
    model = names["model"]
    spans: Any = exporter.get_finished_spans()
    succeeded, failed = spans
    assert {succeeded.name, failed.name} == {f"embeddings {model.spec.name}"}
    attributes = succeeded.attributes
    assert attributes["gen_ai.operation.name"] == "embeddings"
    assert attributes["gen_ai.request.model"] == model.spec.name
    assert attributes["gen_ai.embeddings.dimension.count"] == model.spec.embedding_dim
    assert {"aioembed.decode", "aioembed.inference"} <= attributes.keys()
    assert succeeded.start_time < succeeded.end_time
    attributes = failed.attributes
    assert attributes["error.type"] == "ImageDecodeError"
    assert not failed.status.is_ok

    data: Any = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("gen_ai.client.operation.duration", "s")
    assert sum(point.count for point in metric.data.data_points) == 2
    meters.shutdown()
    tracers.shutdown()
