"""The example application: a mounted router, dependency injection, a background job."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from .conftest import picture

pytest.importorskip("fastapi")

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
            await example.model.load()
            assert (await client.get("/embed/readyz")).status_code == 200
            assert (await client.get("/embed/")).headers["content-type"].startswith("text/html")
            document = (await client.get("/embed/openapi.json")).json()
            assert document["servers"] == [{"url": "/embed"}]
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
