"""With a key, nothing that is protected answers without it: no form of a path or method helps."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message

from aioembed import ImageEmbeddings
from aioembed.integrations.fastapi import app, router

from .conftest import picture, serving

pytestmark = pytest.mark.anyio

PROTECTED = [
    "/embeddings",
    "/v2/embed",
    "/v1/embeddings/",
    "/v1/embeddings",
    "/v1/similarity",
    "/v1/classify",
    "/v1/models",
    "/v1/models/tiny-image",
    "/v1/state",
    "/v1/state/stream",
    "/metrics",
]
ODD = [
    "{}\n",
    "{}\r",
    "{}\r\n",
    "{}\x00",
    "{} ",
    "{}/",
    "{}//",
    "{}/.",
    "{}/..",
    "{};a=b",
    "{}?",
    "{}#",
    "{}\u2028",
    "/{}",
    "//{}",
    "\n{}",
    "/.{}",
    "/..{}",
    "/healthz/..{}",
    "/healthz{}",
    "/openapi.json{}",
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "X",
]
BODY = json.dumps({"input": base64.b64encode(picture()).decode()}).encode()


async def ask(
    app: ASGIApp, method: str, path: str, *, root_path: str = "", raw_path: bytes | None = None
) -> tuple[int, bytes]:
    """Send a request whose path no client or server has put in order."""
    status, content = 0, b""
    messages: list[Message] = [{"type": "http.request", "body": BODY}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, content
        status = message.get("status", status)
        content += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw_path or path.encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"server")],
    }
    await app(scope, receive, send)
    return status, content


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("mount", ["", "/embed", "/v1", "/healthz"])
@pytest.mark.parametrize("path", PROTECTED)
async def test_no_odd_path_or_method_answers_without_the_key(
    tiny: ImageEmbeddings, path: str, mount: str
) -> None:
    mounted = Starlette(routes=[Mount(mount, app(tiny, api_key="secret", page=False))])
    for method in METHODS:
        assert (await ask(mounted, method, mount + path))[0] == 401, method
    for method in ("GET", "POST"):
        for form in [*ODD, path.upper(), path.title(), path.replace("/", "//")]:
            odd = form.format(path) if "{}" in form else form
            for root_path in ("", "/v1", path):
                status, content = await ask(mounted, method, mount + odd, root_path=root_path)
                assert status in {401, 404, 405}, (method, odd, root_path)
                assert b"embedding_dim" not in content
                assert b"aioembed_" not in content


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_included_route_answers_without_the_key(tiny: ImageEmbeddings) -> None:
    including = FastAPI()
    including.include_router(router(tiny, api_key="secret"), prefix="/embed")
    for path in PROTECTED:
        for method in METHODS:
            assert (await ask(including, method, f"/embed{path}"))[0] == 401, (method, path)
        for form in ODD:
            status, content = await ask(including, "POST", "/embed" + form.format(path))
            assert status in {307, 401, 404, 405}
            assert b"embedding" not in content.replace(b"/embeddings", b"")


async def test_readyz_says_why_a_load_failed_to_those_with_the_key_alone(tmp_path: Path) -> None:
    model = ImageEmbeddings(tmp_path / "secret-place.pte")
    async with serving(model, load=False, api_key="secret") as client:
        await model.wait_for(lambda state: state.error is not None)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "secret-place" not in answer.text.replace(model.spec.name, "")
        assert str(tmp_path)[:12] not in answer.text
        told = await client.get("/readyz", headers={"Authorization": "Bearer secret"})
        assert str(tmp_path)[:12] in told.text
