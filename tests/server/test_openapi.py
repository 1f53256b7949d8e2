"""schemathesis over the OpenAPI document: no 500, and every answer is what the document says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import Server

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

ADDRESSES = (
    "POST /v1/embeddings",
    "POST /embeddings",
    "POST /v2/embed",
    "POST /v1/similarity",
    "POST /v1/classify",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/state",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)


def explore(server: Server, address: str, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    method, path = address.split()
    checks = (
        schemathesis.checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    )

    def conforms(case: Any) -> None:
        case.call_and_validate(checks=checks)

    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    given = hypothesis.given(case=schema[path][method].as_strategy())
    settings(given(conforms))()


@pytest.mark.parametrize("address", ADDRESSES)
def test_answers_conform_to_the_document(server: Server, address: str) -> None:
    explore(server, address, 15)


@pytest.mark.slow
@pytest.mark.parametrize("address", ADDRESSES)
def test_many_answers_conform_to_the_document(server: Server, address: str) -> None:
    explore(server, address, 300)


def test_a_path_with_a_line_break_is_answered_in_the_same_form(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models/a%0Ab")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in {"not_found", "model_not_found"}
