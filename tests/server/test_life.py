"""Models that are not ready, busy models, and clients that go away."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.types import Message, Receive

from aioembed import ImageEmbeddings, Status
from aioembed.integrations.starlette import Drain, ServerLimits, router
from aioembed.integrations.starlette.schemas import States
from aioembed.testing import HubServer

from ..programs import TINY_IMAGE, TINY_IMAGE_PROGRAM
from .conftest import Brake, picture, post_scope, serving

pytestmark = pytest.mark.anyio

BODY = {"input": base64.b64encode(picture()).decode()}


async def test_readyz_tells_the_progress_of_a_download(tmp_path: Path) -> None:
    async with HubServer(bytes_per_second=60_000) as hub:
        url = hub.add("someone/model", "model.pte", TINY_IMAGE_PROGRAM.read_bytes())
        model = ImageEmbeddings(url, cache_dir=tmp_path)
        async with serving({"remote": model}, load=False) as client:
            await model.wait_for(lambda state: 0 < state.download_progress < 1)
            answer = await client.get("/readyz")
            states = States.model_validate_json(answer.content)
            assert answer.status_code == 503
            assert states.models[0].status is Status.DOWNLOADING
            assert 0 < states.models[0].download_progress < 1
            refused = await client.post("/v1/embeddings", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "model_downloading"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert (await client.get("/healthz")).status_code == 200
            await model.wait_for(Status.READY)
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.post("/v1/embeddings", json=BODY)).status_code == 200


async def test_a_model_that_failed_or_closed_is_503(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pte"
    broken.write_bytes(b"no program")
    failed, closed = ImageEmbeddings(broken), ImageEmbeddings(TINY_IMAGE)
    async with serving({"failed": failed, "closed": closed}, load=False) as client:
        await failed.wait_for(Status.FAILED)
        await closed.aclose()
        for name in ("failed", "closed"):
            answer = await client.post("/v1/embeddings", json={**BODY, "model": name})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == f"model_{name}"
        ready = States.model_validate_json((await client.get("/readyz")).content)
        assert not ready.is_ready
        assert ready.models[0].error is not None


async def test_a_full_queue_is_429_with_retry_after(inference: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE, max_pending=1)
    async with serving(model) as client:
        inference.hold()
        async with anyio.create_task_group() as group:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.post("/v1/embeddings", json=BODY))

            group.start_soon(ask)
            await inference.wait_entered()
            refused = await client.post("/v1/embeddings", json=BODY)
            inference.release()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert answers[0].status_code == 200


async def test_a_request_that_takes_too_long_is_504(
    tiny: ImageEmbeddings, inference: Brake
) -> None:
    async with serving(tiny, limits=ServerLimits(request_timeout=0.05)) as client:
        inference.hold()
        async with anyio.create_task_group() as group:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.post("/v1/embeddings", json=BODY))

            group.start_soon(ask)
            await inference.wait_entered()
            waiting = await client.post("/v1/embeddings", json=BODY)
            inference.release()
        assert waiting.status_code == 504
        assert waiting.json()["error"]["code"] == "forward_timeout"


async def test_work_is_cancelled_when_its_client_goes_away(
    tiny: ImageEmbeddings, inference: Brake
) -> None:
    async with tiny:
        await tiny.load()
        routes = router(tiny)
        inference.hold()
        gone = anyio.Event()
        messages: list[Message] = []
        async with anyio.create_task_group() as group:
            group.start_soon(tiny.forward, picture())
            await inference.wait_entered()

            async def ask() -> None:
                await routes(post_scope(), _receive(gone), send)

            async def send(message: Message) -> None:
                messages.append(message)

            group.start_soon(ask)
            await tiny.wait_for(lambda state: state.queue_depth == 2)
            gone.set()
            await tiny.wait_for(lambda state: state.queue_depth == 1)
            inference.release()
        assert tiny.statistics().cancelled == 1
        assert messages == []


async def test_a_stopping_server_finishes_what_runs_and_refuses_the_rest(
    tiny: ImageEmbeddings, inference: Brake
) -> None:
    drain = Drain()
    async with serving(tiny, drain=drain) as client:
        inference.hold()
        async with anyio.create_task_group() as group:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.post("/v1/embeddings", json=BODY))

            group.start_soon(ask)
            await inference.wait_entered()
            assert drain.running == 1
            drain.begin()
            refused = await client.post("/v1/embeddings", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "server_stopping"
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            inference.release()
        assert answers[0].status_code == 200
        assert drain.running == 0
        ended = await client.get("/v1/state/stream")
        assert ended.text.count("event: state") == 1


async def test_metrics_tell_of_requests_and_models(client: httpx.AsyncClient) -> None:
    await client.post("/v1/embeddings", json=BODY)
    await client.post("/v1/embeddings", content=b"{")
    await client.get("/some/random/path")
    figures = (await client.get("/metrics")).text
    for line in (
        'aioembed_requests_total{method="POST",path="/v1/embeddings",status="200"} 1.0',
        'aioembed_requests_total{method="POST",path="/v1/embeddings",status="415"} 1.0',
        'aioembed_requests_total{method="GET",path="other",status="404"} 1.0',
        'aioembed_model_calls_total{modality="image",model="tiny-image",outcome="succeeded"} 1.0',
        'aioembed_model_download_progress{modality="image",model="tiny-image"} 1.0',
    ):
        assert line in figures


def _receive(gone: anyio.Event) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": json.dumps(BODY).encode()}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive
