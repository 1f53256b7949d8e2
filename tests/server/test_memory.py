"""Servers whose models sleep, or share less memory than all of them need."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from aioembed import ImageEmbeddings
from aioembed.errors import InvalidConfig
from aioembed.integrations.fastapi import Models, app

from ..handle.conftest import Brake, loads
from ..programs import TINY_IMAGE, TINY_IMAGE_PROGRAM
from .conftest import picture

__all__ = ["loads"]

pytestmark = pytest.mark.anyio

_SIZE = TINY_IMAGE_PROGRAM.stat().st_size
BODY: dict[str, Any] = {"input": base64.b64encode(picture()).decode()}


def handles(count: int) -> dict[str, ImageEmbeddings]:
    return {f"model {number}": ImageEmbeddings(TINY_IMAGE) for number in range(count)}


@asynccontextmanager
async def serving(models: Models) -> AsyncIterator[httpx.AsyncClient]:
    application = app(models)
    async with application.router.lifespan_context(application):
        transport = httpx.ASGITransport(application, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    listed = (await client.get("/v1/models")).json()["data"]
    return {card["id"]: card["states"]["image"] for card in listed}


async def test_models_are_loaded_when_asked_for_and_sleep_for_others() -> None:
    async with serving(Models(handles(3), max_memory=2 * _SIZE)) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert {one["is_asleep"] for one in ready.json()["models"]} == {True}
        for name in ("model 0", "model 1", "model 0", "model 2"):
            answer = await client.post("/v1/embeddings", json={**BODY, "model": name})
            assert answer.status_code == 200, answer.text
        assert await states(client) == {
            "model 0": "ready",
            "model 1": "asleep",
            "model 2": "ready",
        }
        assert (await client.get("/readyz")).status_code == 200


async def test_named_models_are_preloaded() -> None:
    models = Models(handles(3), max_memory=2 * _SIZE, preload=["model 2"])
    async with serving(models) as client:
        await models.image("model 2").wait_for(lambda state: state.is_ready)
        assert (await states(client))["model 2"] == "ready"
        assert (await states(client))["model 0"] == "asleep"


async def test_requests_about_a_model_that_was_never_loaded_are_answered() -> None:
    async with serving(Models(handles(2), max_memory=2 * _SIZE)) as client:
        wrong = await client.post("/v1/embeddings", json={**BODY, "dimensions": 7})
        assert wrong.json()["error"]["code"] == "dimensions_not_supported"
        body = {"images": [BODY["input"]], "model": "model 1"}
        answer = await client.post("/v1/similarity", json=body)
        assert answer.status_code == 200, answer.text


async def test_requests_wait_for_a_model_that_wakes(loads: Brake) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    async with serving(Models(model)) as client:
        await model.wait_for("ready")
        await model.sleep()
        assert (await client.get("/readyz")).status_code == 200
        loads.hold()
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await client.post("/v1/embeddings", json=BODY)).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await model.wait_for(lambda state: state.is_waking)
            assert await states(client) == {"tiny-image": "waking"}
            assert (await client.get("/readyz")).status_code == 200
            tasks.start_soon(ask)
            await model.wait_for(lambda state: state.queue_depth == 2)
            loads.release()
        assert answers == [200, 200]


async def test_a_model_that_never_fits_is_503_and_the_others_are_served() -> None:
    async with serving(Models(handles(1), max_memory=_SIZE - 1)) as client:
        first = await client.post("/v1/embeddings", json=BODY)
        assert first.status_code == 503
        later = await client.post("/v1/embeddings", json=BODY)
        assert later.json()["error"]["code"] in {"model_failed", "model_loading"}
        assert (await client.get("/readyz")).status_code == 503


async def test_models_to_preload_must_be_known_and_need_a_bound() -> None:
    with pytest.raises(InvalidConfig, match="goes with max_memory"):
        Models(handles(1), preload=["model 0"])
    with pytest.raises(InvalidConfig, match="no model is named"):
        async with Models(handles(1), max_memory=1, preload=["other"]).running():
            pass


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
async def test_memory_must_be_a_positive_number_of_bytes(wrong: Any) -> None:
    with pytest.raises(InvalidConfig, match="max_memory must be"):
        async with Models(handles(1), max_memory=wrong).running():
            pass
