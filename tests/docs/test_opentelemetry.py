"""The page on many callers shows how to report to OpenTelemetry; this holds it to that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

_PAGE = Path(__file__).parents[2] / "docs/concurrency.md"


def test_opentelemetry_gets_what_the_example_records() -> None:
    examples = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (text for text in examples if "opentelemetry" in text)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    exec(  # as it stands, but with the reader's provider in place of the process's
        compile(example.replace("metrics.get_meter(", "provider.get_meter("), str(_PAGE), "exec"),
        {"__name__": "__main__", "provider": provider},
    )
    data: Any = reader.get_metrics_data()
    found = {
        metric.name: metric.data.data_points
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    (calls,) = found["aioembed.calls"]
    assert (calls.value, dict(calls.attributes)) == (1, {"outcome": "succeeded"})
    stages = {point.attributes["stage"] for point in found["aioembed.stage.duration"]}
    assert {"decode", "preprocess", "queue", "inference"} <= stages
    assert found["aioembed.batch.size"][0].sum == 1
    provider.shutdown()
