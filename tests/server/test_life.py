"""Models that are not ready, busy models, and clients that go away."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.types import Message, Receive

from aioembed import ImageEmbeddings, Queueing, Status
from aioembed.errors import ModelError
from aioembed.integrations.fastapi import Metrics, Models, ServerLimits, app, lifespan, stop
from aioembed.integrations.fastapi.schemas import States
from aioembed.testing import HubServer

from ..programs import TINY_IMAGE, TINY_IMAGE_PROGRAM
from .conftest import Brake, picture, post_scope, serving

pytestmark = pytest.mark.anyio

BODY = {"input": base64.b64encode(picture()).decode()}


async def test_readyz_reports_the_progress_of_a_download(tmp_path: Path) -> None:
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
            # The load may be tried again just now.
            assert answer.json()["error"]["code"] in {f"model_{name}", "model_loading"}
        ready = States.model_validate_json((await client.get("/readyz")).content)
        assert not ready.is_ready


async def test_a_full_queue_is_429_with_retry_after(inference: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE, queueing=Queueing(max_pending=1))
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
    async with serving(tiny, limits=ServerLimits(request_timeout=0.1)) as client:
        inference.hold()
        async with anyio.create_task_group() as group:
            group.start_soon(tiny.forward, picture())
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
        routes = app(tiny)
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
        assert messages[0]["status"] == 499  # which the client does not get


async def test_streams_end_when_the_server_stops(tiny: ImageEmbeddings) -> None:
    application = app(tiny)
    async with application.router.lifespan_context(application):
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await tiny.load()
            stop(application)
            ended = await client.get("/v1/state/stream")
            assert ended.text.count("event: state") == 1
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200


async def test_a_stream_ends_after_its_time(
    tiny: ImageEmbeddings,
) -> None:
    async with serving(tiny, limits=ServerLimits(stream_seconds=0.01)) as client:
        ended = await client.get("/v1/state/stream")
        assert ended.text.startswith("event: state\ndata: {")


@pytest.mark.parametrize(
    "limits", [ServerLimits(max_streams=2), ServerLimits(max_streams_per_client=2)]
)
async def test_streams_are_bounded(tiny: ImageEmbeddings, limits: ServerLimits) -> None:
    async with serving(tiny, limits=limits) as client:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(client.get, "/v1/state/stream")
            await anyio.wait_all_tasks_blocked()
            refused = await client.get("/v1/state/stream")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "too_many_streams"
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/v1/state/stream")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()


async def test_a_forgotten_lifespan_is_named_by_the_first_error() -> None:
    for application in (app(ImageEmbeddings(TINY_IMAGE)), app(lambda: ImageEmbeddings(TINY_IMAGE))):
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post("/v1/embeddings", json=BODY)
            assert answer.status_code == 503
            assert "lifespan=lifespan(models)" in answer.json()["error"]["message"]


async def test_an_application_may_start_several_times() -> None:
    application = app(lambda: ImageEmbeddings(TINY_IMAGE))
    for _ in range(2):
        async with application.router.lifespan_context(application):
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # no event
                    await anyio.sleep(0.01)
                assert (await client.post("/v1/embeddings", json=BODY)).status_code == 200


async def test_a_lifespan_may_wait_for_its_models(tmp_path: Path) -> None:
    async with lifespan(model := ImageEmbeddings(TINY_IMAGE), wait=True)(None):
        assert model.state.is_ready
    with pytest.raises(ExceptionGroup) as failed:
        async with lifespan(ImageEmbeddings(tmp_path / "missing.pte"), wait=True)(None):
            pass
    assert failed.group_contains(ModelError)


async def test_a_failed_load_is_tried_again_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "late.pte"
    model = ImageEmbeddings(path)
    caplog.set_level(logging.INFO, "aioembed.server")
    async with Models(model).running():
        await model.wait_for(lambda state: state.error is not None)
        await anyio.wait_all_tasks_blocked()
        path.write_bytes(TINY_IMAGE_PROGRAM.read_bytes())
        while "late.pte (image): ready" not in caplog.text:  # noqa: ASYNC110  # a log has no event
            await anyio.sleep(0.01)
    assert "trying again in 1 s" in caplog.text
    assert "late.pte (image) cannot be loaded" in caplog.text


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_the_gauges_of_a_worker_that_has_ended_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Its process number is free, or that of another user's process by now."""

    def kill(_process: int, _signal: int) -> None:
        raise error

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(os, "kill", kill)
    gauges = tmp_path / "gauge_livesum_4194305.db"
    gauges.touch()
    Metrics().render()
    assert not gauges.exists()


async def test_metrics_count_requests_and_models(client: httpx.AsyncClient) -> None:
    await client.post("/v1/embeddings", json=BODY)
    await client.post("/v1/embeddings", content=b"{")
    await client.get("/some/random/path")
    figures = (await client.get("/metrics")).text
    for line in (
        'aioembed_requests_total{method="POST",path="/v1/embeddings",status="200"} 1.0',
        'aioembed_requests_total{method="POST",path="/v1/embeddings",status="415"} 1.0',
        'aioembed_model_status{modality="image",model="tiny-image",status="ready"} 1.0',
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
