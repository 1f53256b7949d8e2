"""Requests at fault: each has its status, and the server is unharmed."""

from __future__ import annotations

import base64
import json

import anyio
import httpx
import pytest
from starlette.types import Message

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.errors import InvalidConfig
from aioembed.integrations.starlette import ServerLimits, lifespan, router

from ..programs import TINY_IMAGE
from .conftest import picture, post_scope, serving

pytestmark = pytest.mark.anyio

ENCODED = base64.b64encode(picture()).decode()
EPS = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
JSON = "application/json"

CASES: dict[str, tuple[str | bytes, str, int, str]] = {
    "no JSON": ("{", JSON, 400, "invalid_json"),
    "no UTF-8": (b'{"input": "\xff"}', JSON, 400, "invalid_json"),
    "nested garbage": ("[" * 100_000, JSON, 400, "invalid_json"),
    "nested input": ('{"input": [[[[1]]]]}', JSON, 400, "invalid_request"),
    "tokens": ('{"input": [1, 2]}', JSON, 400, "invalid_request"),
    "nothing": ('{"input": []}', JSON, 400, "invalid_request"),
    "unknown field": ('{"input": "a", "inputs": 1}', JSON, 400, "invalid_request"),
    "unknown encoding": ('{"input": "a", "encoding_format": "x"}', JSON, 400, "invalid_request"),
    "10,000 inputs": (json.dumps({"input": ["a"] * 10_000}), JSON, 400, "too_many_inputs"),
    "counted first": (json.dumps({"input": [{}] * 300}), JSON, 400, "too_many_inputs"),
    "unknown model": ('{"input": "a", "model": "gpt"}', JSON, 404, "model_not_found"),
    "text": ('{"input": "a", "modality": "text"}', JSON, 400, "modality_not_supported"),
    "dimensions": ('{"input": "a", "dimensions": 8}', JSON, 400, "dimensions_not_supported"),
    "private URL": ('{"input": "http://127.0.0.1/a"}', JSON, 400, "source_refused"),
    "metadata address": ('{"input": "http://169.254.169.254/"}', JSON, 400, "source_refused"),
    "a path": ('{"input": "/etc/passwd"}', JSON, 400, "source_refused"),
    "a file URI": ('{"input": "file:///etc/passwd"}', JSON, 400, "source_refused"),
    "EPS": (json.dumps({"input": f"data:;base64,{EPS}"}), JSON, 415, "unsupported_image_format"),
    "no image": ('{"input": "data:;base64,aGVsbG8="}', JSON, 422, "image_decode_error"),
    "text/plain": ('{"input": "a"}', "text/plain", 415, "unsupported_content_type"),
    "no type": ("{}", "", 415, "unsupported_content_type"),
    "a form without boundary": ("a", "multipart/form-data", 400, "invalid_form"),
    "a broken form": ("a", "multipart/form-data; boundary=x", 400, "invalid_form"),
}


@pytest.mark.parametrize("case", CASES)
async def test_each_fault_has_its_status(client: httpx.AsyncClient, case: str) -> None:
    body, kind, status, code = CASES[case]
    headers = {"Content-Type": kind} if kind else {}
    answer = await client.post("/v1/embeddings", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert len(answer.content) < 4096
    healthy = await client.post("/v1/embeddings", json={"input": ENCODED})
    assert healthy.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/embeddings", 405), ("GET", "/v1/models/x", 404)],
)
async def test_unknown_addresses_are_answered_in_the_same_form(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("declared", "read"), [({}, 51_000), ({"content-length": "99999"}, 0)])
async def test_a_body_is_read_no_further_than_the_cap(
    tiny: ImageEmbeddings, declared: dict[str, str], read: int
) -> None:
    """What the client sends after the answer is thrown away, so that it gets to read that."""
    given = 0
    given_before_answer = 0

    async def endless() -> Message:
        nonlocal given
        given += 1000
        return {"type": "http.request", "body": b" " * 1000, "more_body": given < 200_000}

    async def send(message: Message) -> None:
        nonlocal given_before_answer
        if message["type"] == "http.response.start":
            assert message["status"] == 413
            given_before_answer = given

    routes = router(tiny, limits=ServerLimits(max_body_bytes=50_000))
    await routes(post_scope(**declared), endless, send)
    assert given_before_answer == read
    assert given == 200_000


async def test_a_body_that_does_not_come_is_408(tiny: ImageEmbeddings) -> None:
    statuses: list[int] = []

    async def stalls() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    await router(tiny, limits=ServerLimits(body_timeout=0.05))(post_scope(), stalls, send)
    assert statuses[0] == 408


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic secret", "Bearer ", "\xff"])
async def test_without_the_key_there_is_only_health(
    tiny: ImageEmbeddings, given: str | None
) -> None:
    async with serving(tiny, api_key="secret") as client:
        headers = [(b"Authorization", given.encode("latin-1"))] if given is not None else []
        for path in ("/v1/models", "/v1/state", "/metrics"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/healthz")).status_code == 200
        allowed = await client.get("/v1/models", headers={"Authorization": "Bearer secret"})
        assert allowed.status_code == 200


async def test_no_origin_is_allowed_by_default(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_routers_policy_holds_for_a_model_that_trusts_everything() -> None:
    model = ImageEmbeddings(TINY_IMAGE, source_policy=SourcePolicy.trusted())
    policy = SourcePolicy.untrusted().allow(max_pixels=100)
    async with serving(model, policy=policy) as client:
        answer = await client.post("/v1/embeddings", json={"input": ENCODED})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "image_too_large"


async def test_what_cannot_be_served_is_refused_at_once(tiny: ImageEmbeddings) -> None:
    with pytest.raises(InvalidConfig, match="at least one model"):
        lifespan([])
    with pytest.raises(InvalidConfig, match="two image models"):
        router([tiny, ImageEmbeddings(TINY_IMAGE)])
    with pytest.raises(InvalidConfig, match="key is empty"):
        router(tiny, api_key=" ")
