"""The example application: a mounted router, dependency injection, a background job."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware.base import RequestResponseEndpoint
from starlette.routing import Mount
from starlette.types import Message

from aioembed import ImageEmbeddings
from aioembed.errors import InvalidConfig
from aioembed.integrations.fastapi import app as embeddings_app
from aioembed.integrations.fastapi import get_models, lifespan, router

from ..programs import TINY_IMAGE
from .conftest import picture, post_scope

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fastapi_app.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_app", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.anyio
async def test_the_example_serves_embeddings_and_its_own_routes(example: ModuleType) -> None:
    app = example.app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.get("/embed/readyz")).status_code == 200
            assert (await client.get("/embed/")).headers["content-type"].startswith("text/html")
            document = (await client.get("/openapi.json")).json()
            assert {"/embed/v1/embeddings", "/photos"} <= set(document["paths"])
            upload = {"input": ("a.png", picture())}
            answer = await client.post("/embed/v1/embeddings", files=upload)
            assert len(answer.json()["data"][0]["embedding"]) == 1280
            wrong = await client.post("/embed/v1/embeddings", json={"input": "no image"})
            assert wrong.json()["error"]["param"] == "input"

            added = await client.post("/photos", files={"image": picture()})
            assert added.json() == {"photo": 0}
            assert (await client.get("/photos")).json() == {"0": "indexed"}
            found = await client.post("/search", files={"image": picture()})
            assert found.json()["0"] == pytest.approx(1, abs=1e-5)
            refused = await client.post("/search", files={"image": b"no image"})
            assert refused.status_code == 400


@pytest.mark.anyio
async def test_numbers_of_photos_never_repeat_and_failures_free_them(example: ModuleType) -> None:
    app = example.app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            numbers: list[int] = []
            for content in (picture(), b"broken", picture(1), b"broken", picture(2)):
                answer = await client.post("/photos", files={"image": content})
                numbers.append(answer.json()["photo"])
            assert numbers == [0, 1, 2, 3, 4]
            assert set((await client.get("/photos")).json()) == {"0", "2", "4"}


def test_an_application_starts_in_each_of_fastapis_test_clients(example: ModuleType) -> None:
    for _ in range(2):
        with TestClient(example.app) as client:
            embedded = client.post("/embed/v1/embeddings", files={"input": picture()})
            found = client.post("/search", files={"image": picture()})
            assert embedded.status_code == found.status_code == 200
            wrong = client.post("/embed/v1/embeddings", json={"input": "no image"})
            assert wrong.status_code == 400


@pytest.mark.anyio
async def test_models_are_replaced_by_dependency_overrides() -> None:
    app = FastAPI()
    app.include_router(router(ImageEmbeddings(TINY_IMAGE)), prefix="/embed")
    async with ImageEmbeddings(TINY_IMAGE) as other:
        await other.load()
        app.dependency_overrides[get_models] = lambda: {"other": other}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            listed = (await client.get("/embed/v1/models")).json()["data"]
            assert [one["id"] for one in listed] == ["other"]
            upload = {"input": ("a.png", picture())}
            answer = await client.post("/embed/v1/embeddings", files=upload)
            assert answer.json()["model"] == "other"


@pytest.mark.anyio
async def test_a_starlette_application_mounts_the_application_and_no_router() -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    mounted = Starlette(
        routes=[Mount("/router", router(model)), Mount("/app", embeddings_app(model))],
        lifespan=lifespan(model, wait=True),
    )
    async with mounted.router.lifespan_context(mounted):
        transport = httpx.ASGITransport(mounted)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.get("/app/readyz")).status_code == 200
            for path in ("readyz", "v1/models"):
                with pytest.raises(InvalidConfig, match=r"mount app\(\)"):
                    await client.get(f"/router/{path}")


@pytest.mark.anyio
async def test_a_client_that_goes_away_leaves_no_error_under_a_middleware(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = ImageEmbeddings(TINY_IMAGE)
    app = FastAPI(lifespan=lifespan(model))
    app.include_router(router(model))

    @app.middleware("http")
    async def timing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    messages: list[Message] = [
        {"type": "http.request", "body": b'{"input": "x"', "more_body": True}
    ]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert message.get("status", 499) == 499

    async with app.router.lifespan_context(app):
        await app(post_scope(), receive, send)
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
