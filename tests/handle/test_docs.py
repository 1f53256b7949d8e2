"""The page about many callers: every example runs as it stands."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[2] / "docs" / "concurrency.md"
_EXAMPLES = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", _EXAMPLES)
def test_an_example_runs(example: str) -> None:
    if "opentelemetry" in example:
        pytest.importorskip("opentelemetry.metrics")
    try:
        exec(compile(example, str(_PAGE), "exec"), {"__name__": "__main__"})
    finally:
        gc.unfreeze()


def test_opentelemetry_gets_what_the_example_records() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    (example,) = (text for text in _EXAMPLES if "opentelemetry" in text)
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    exec(  # as it stands, but with the reader's provider in place of the process's
        compile(example.replace("metrics.get_meter(", "provider.get_meter("), str(_PAGE), "exec"),
        {"__name__": "__main__", "provider": provider},
    )
    data = reader.get_metrics_data()
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
