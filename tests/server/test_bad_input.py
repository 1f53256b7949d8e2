"""Invalid requests: each has its status, and the next request is answered."""

from __future__ import annotations

import base64
import json

import anyio
import httpx
import pytest
from starlette.types import Message

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.errors import InvalidConfig
from aioembed.integrations.fastapi import ServerLimits, app, lifespan, router

from ..programs import TINY_IMAGE
from .conftest import picture, post_scope, running, serving

pytestmark = pytest.mark.anyio

ENCODED = base64.b64encode(picture()).decode()
EPS = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
JSON = "application/json"

CASES: dict[str, tuple[str | bytes, str, int, str]] = {
    "not JSON": ("{", JSON, 400, "invalid_json"),
    "not UTF-8": (b'{"input": "\xff"}', JSON, 400, "invalid_json"),
    "nested garbage": ("[" * 100_000, JSON, 400, "invalid_json"),
    "nested input": ('{"input": [[[[1]]]]}', JSON, 400, "invalid_request"),
    "tokens": ('{"input": [1, 2]}', JSON, 400, "invalid_request"),
    "nothing": ('{"input": []}', JSON, 400, "invalid_request"),
    "tokens of several": ('{"input": [[1, 2], [3]]}', JSON, 400, "invalid_request"),
    "null": ('{"input": null}', JSON, 400, "invalid_request"),
    "a number": ('{"input": 3}', JSON, 400, "invalid_request"),
    "no input": ("{}", JSON, 400, "invalid_request"),
    "not an object": ("[1]", JSON, 400, "invalid_request"),
    "text and image": ('{"input": [{"text": "a", "image": "b"}]}', JSON, 400, "invalid_request"),
    "an empty object": ('{"input": [{}]}', JSON, 400, "invalid_request"),
    "input and messages": ('{"input": "a", "messages": []}', JSON, 400, "invalid_request"),
    "a text object": ('{"input": [{"text": "a"}]}', JSON, 400, "modality_not_supported"),
    "a text alone": ('{"input": "a photo of a cat"}', JSON, 400, "invalid_user_input"),
    "unknown encoding": ('{"input": "a", "encoding_format": "x"}', JSON, 400, "invalid_request"),
    "10,000 inputs": (json.dumps({"input": ["a"] * 10_000}), JSON, 400, "too_many_inputs"),
    "counted first": (json.dumps({"input": [{}] * 300}), JSON, 400, "too_many_inputs"),
    "messages counted first": (json.dumps({"messages": [{}] * 300}), JSON, 400, "too_many_inputs"),
    "parts of a message": (
        json.dumps({"messages": [{"content": [""] * 300}]}),
        *(JSON, 400, "invalid_request"),
    ),
    "parts of messages": (
        json.dumps({"messages": [{"content": [""] * 200}] * 2}),
        *(JSON, 400, "invalid_request"),
    ),
    "a list in any field": (json.dumps({"x": [1.5] * 300}), JSON, 400, "too_many_inputs"),
    "a long URL": (
        json.dumps({"input": "http://a/" + "b" * 9000, "modality": "image"}),
        *(JSON, 400, "invalid_user_input"),
    ),
    "unknown model": ('{"input": "a", "model": "gpt"}', JSON, 404, "model_not_found"),
    "text by name": ('{"input": "a", "modality": "text"}', JSON, 400, "modality_not_supported"),
    "dimensions": ('{"input": "a", "dimensions": 8}', JSON, 400, "dimensions_not_supported"),
    "private URL": ('{"input": "http://127.0.0.1/a"}', JSON, 400, "source_refused"),
    "metadata address": ('{"input": "http://169.254.169.254/"}', JSON, 400, "source_refused"),
    "a path": ('{"input": "/etc/passwd"}', JSON, 400, "source_refused"),
    "a file URI": ('{"input": "file:///etc/passwd"}', JSON, 400, "source_refused"),
    "EPS": (json.dumps({"input": f"data:;base64,{EPS}"}), JSON, 415, "unsupported_image_format"),
    "not an image": ('{"input": "data:;base64,aGVsbG8="}', JSON, 422, "image_decode_error"),
    "text/plain": ('{"input": "a"}', "text/plain", 415, "unsupported_content_type"),
    "no type": ("{}", "", 415, "unsupported_content_type"),
    "a form without boundary": ("a", "multipart/form-data", 400, "invalid_form"),
    "a broken form": ("a", "multipart/form-data; boundary=x", 400, "invalid_form"),
}


async def test_each_fault_has_its_status(client: httpx.AsyncClient) -> None:
    found: dict[str, tuple[int, str]] = {}
    for case, (body, kind, _, _) in CASES.items():
        headers = {"Content-Type": kind} if kind else {}
        answer = await client.post("/v1/embeddings", content=body, headers=headers)
        found[case] = (answer.status_code, answer.json()["error"]["code"])
        assert len(answer.content) < 4096, case
        healthy = await client.post("/v1/embeddings", json={"input": ENCODED})
        assert healthy.status_code == 200, case
    assert found == {case: (status, code) for case, (_, _, status, code) in CASES.items()}


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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org:99999/a.png", "its port must be from 1 to 65535"),
        ("http://xn--n3h.invalid/a.png", "its host or port is malformed"),
        ("http://0x7f000001/a.png", "only some programs read as an address"),
        ("http://10.0.0.1/a.png", "a public host"),
    ],
)
async def test_a_url_that_cannot_be_fetched_is_answered_with_the_reason(
    client: httpx.AsyncClient, url: str, said: str
) -> None:
    answer = await client.post("/v1/embeddings", json={"input": url})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(("declared", "read"), [({}, 51_000), ({"content-length": "99999"}, 0)])
async def test_a_body_is_read_no_further_than_the_cap(
    tiny: ImageEmbeddings, declared: dict[str, str], read: int
) -> None:
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

    routes = app(tiny, limits=ServerLimits(max_body_bytes=50_000))
    await routes(post_scope(**declared), endless, send)
    assert given_before_answer == read


@pytest.mark.parametrize("api_key", [None, "secret"])
async def test_what_arrives_of_a_refused_body_is_read_before_the_answer_ends(
    tiny: ImageEmbeddings, api_key: str | None
) -> None:
    """A server that closes a connection with unread bytes resets it, and the answer is lost."""
    events: list[str] = []

    async def body() -> Message:
        events.append("read")
        return {"type": "http.request", "body": b" " * 1000, "more_body": len(events) < 5}

    async def send(message: Message) -> None:
        events.append("more" if message.get("more_body") else message["type"][14:])

    routes = app(tiny, limits=ServerLimits(max_body_bytes=100), api_key=api_key)
    await routes(post_scope(**{"content-length": "3000"}), body, send)
    assert events == ["start", "more", "read", "read", "read", "body"]
    events.clear()
    await routes(post_scope(**{"content-length": "3000", "expect": "100-continue"}), body, send)
    assert events == ["start", "body"]  # reading would ask for the body


async def test_a_body_that_does_not_come_is_408(tiny: ImageEmbeddings) -> None:
    statuses: list[int] = []

    async def stalls() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    await app(tiny, limits=ServerLimits(body_timeout=0.05))(post_scope(), stalls, send)
    assert statuses[0] == 408


async def test_all_bodies_together_are_bounded_and_small_ones_keep_a_share(
    tiny: ImageEmbeddings,
) -> None:
    """Large bodies that never end leave room for a request that is small."""
    limits = ServerLimits(max_body_bytes=4 << 20, max_total_body_bytes=16 << 20, body_timeout=60.0)
    application = app(tiny, limits=limits)
    async with running(application, tiny) as client:
        statuses: list[int] = []

        async def stalls() -> Message:
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                scope = post_scope(**{"content-length": str(4 << 20)})
                group.start_soon(application, scope, stalls, send)
            await anyio.wait_all_tasks_blocked()
            assert statuses == [429, 0] * 5
            healthy = await client.post("/v1/embeddings", json={"input": ENCODED})
            assert healthy.status_code == 200
            group.cancel_scope.cancel()
        again = await client.post("/v1/embeddings", json={"input": ENCODED})
        assert again.status_code == 200


async def test_a_body_of_unknown_length_counts_as_it_arrives(tiny: ImageEmbeddings) -> None:
    limits = ServerLimits(max_total_body_bytes=1 << 20)

    async def endless() -> Message:
        return {"type": "http.request", "body": b" " * 65536, "more_body": True}

    statuses: list[int] = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    await app(tiny, limits=limits)(post_scope(), endless, send)
    assert statuses[0] == 429


async def test_requests_in_flight_are_bounded(tiny: ImageEmbeddings) -> None:
    application = app(tiny, limits=ServerLimits(max_requests=1))
    async with running(application, tiny) as client:

        async def stalls() -> Message:
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: Message) -> None:
            raise AssertionError

        async with anyio.create_task_group() as group:
            group.start_soon(application, post_scope(), stalls, send)
            await anyio.wait_all_tasks_blocked()
            refused = await client.post("/v1/embeddings", json={"input": ENCODED})
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            group.cancel_scope.cancel()


async def test_unknown_fields_are_ignored_unless_the_server_is_strict(
    tiny: ImageEmbeddings,
) -> None:
    body = {"input": ENCODED, "input_type": "query", "user": None, "encoding_format": None}
    async with serving(tiny) as client:
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
    async with serving(ImageEmbeddings(TINY_IMAGE), strict=True) as client:
        answer = await client.post("/v1/embeddings", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input_type"


async def test_an_error_quotes_input_in_short(client: httpx.AsyncClient) -> None:
    long = "x y" * 100_000
    for body in ({"input": long}, {"input": "a", "model": long[:500]}, {"input": {long: 1}}):
        answer = await client.post("/v1/embeddings", json=body)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 2048


async def test_errors_name_no_python_classes_and_no_files(client: httpx.AsyncClient) -> None:
    """No Python names, no places on the server."""
    for body, kind, _, _ in CASES.values():
        headers = {"Content-Type": kind} if kind else {}
        said = (await client.post("/v1/embeddings", content=body, headers=headers)).text
        for word in ("SourcePolicy", "allow(", "pydantic", "Traceback", "self.", "/src/", "None"):
            assert word not in said


async def test_without_the_key_there_is_only_health(tiny: ImageEmbeddings) -> None:
    async with serving(tiny, api_key="secret", load=False) as client:
        for given in (None, b"Bearer wrong", b"Basic secret", b"Bearer ", b"\xff"):
            headers = [(b"Authorization", given)] if given is not None else []
            for path in ("/v1/models", "/v1/state", "/metrics"):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await client.get("/healthz", headers=headers)).status_code == 200
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


async def test_one_of_several_keys_is_enough(tiny: ImageEmbeddings) -> None:
    async with serving(tiny, api_key=["first", "second"]) as client:
        for key, status in {"first": 200, "second": 200, "third": 401}.items():
            headers = {"Authorization": f"bearer {key}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_invalid_options_are_refused_immediately(tiny: ImageEmbeddings) -> None:
    with pytest.raises(InvalidConfig, match="at least one model"):
        lifespan([])
    with pytest.raises(InvalidConfig, match="two image models"):
        router([tiny, ImageEmbeddings(TINY_IMAGE)])
    for keys in (" ", "", [], ["a", ""]):
        with pytest.raises(InvalidConfig, match="key is empty"):
            router(tiny, api_key=keys)
