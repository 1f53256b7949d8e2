"""No protected route answers without the key, whatever the form of its path or method."""

from __future__ import annotations

import base64
import json
import socket
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message

from aioembed import ImageEmbeddings
from aioembed.integrations.fastapi import app, router
from aioembed.integrations.fastapi.route import EmbeddingRoute

from ..programs import TINY_IMAGE
from .conftest import picture, serving
from .served import served

pytestmark = pytest.mark.anyio

PROTECTED = [
    "/embeddings",
    "/embeddings/",
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
OPEN = {"/", "/healthz", "/readyz", "/page.js", "/page.css", "/heatmap.js"}
INSERTED = (
    "%0a",
    "%0d%0a",
    "%00",
    "%20",
    "%2f",
    "%2F",
    "/",
    "//",
    "/./",
    "/../",
    "%2e%2e/",
    ";",
    "?",
)
BODY = json.dumps({"input": base64.b64encode(picture()).decode()}).encode()


FUZZED = app(ImageEmbeddings(TINY_IMAGE), api_key="secret")


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


def test_every_route_requires_the_key_but_those_that_are_listed() -> None:
    with_key: set[str] = set()
    without_key: set[str] = set()
    for route in router(ImageEmbeddings(TINY_IMAGE), api_key="secret").routes:
        assert isinstance(route, EmbeddingRoute)
        (without_key if route.is_open else with_key).add(route.path)
    assert without_key == OPEN
    assert with_key == {one.replace("tiny-image", "{name:path}") for one in PROTECTED}


@st.composite
def odd_targets(draw: st.DrawFn) -> str:
    """A protected path in a form that some server, proxy or framework reads as another."""
    changed = ""
    for character in draw(st.sampled_from(PROTECTED)):
        change = draw(st.sampled_from(("", "", "", "", "encode", "twice", "case", "insert")))
        if change == "encode":
            changed += f"%{ord(character):02{draw(st.sampled_from('xX'))}}"
        elif change == "twice":
            changed += character * 2
        elif change == "case":
            changed += character.swapcase()
        else:
            changed += character
        if change == "insert":
            changed += draw(st.sampled_from(INSERTED))
    return changed + draw(st.sampled_from(("", "", *INSERTED)))


def check_answer(target: str, status: int, content: bytes) -> None:
    path = unquote(target.partition("?")[0])
    assert status in {400, 401, 404, 405} or path in OPEN, (target, status)
    for protected in (b'"embedding"', b'"data"', b"aioembed_", b"is_ready"):
        assert protected not in content, target


@given(target=odd_targets(), method=st.sampled_from(("GET", "POST")))
@settings(max_examples=150, deadline=None, database=None)
def test_no_path_however_odd_answers_without_the_key(target: str, method: str) -> None:
    path = unquote(target.partition("?")[0])
    status, content = anyio.run(partial(ask, FUZZED, method, path, raw_path=target.encode()))
    check_answer(target, status, content)


@pytest.mark.slow
def test_no_path_however_odd_answers_without_the_key_from_a_process() -> None:
    with served("--api-key", "secret") as server:
        parts = urlsplit(server.url)

        @given(target=odd_targets(), method=st.sampled_from(("GET", "POST")))
        @settings(max_examples=2000, deadline=None, database=None)
        def fuzz(target: str, method: str) -> None:
            where = (parts.hostname or "", parts.port or 0)
            with socket.create_connection(where, timeout=60) as connection:
                head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
                connection.sendall(head.encode() + BODY)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            check_answer(target, int(answer[9:12]), answer)

        fuzz()


async def test_readyz_says_why_a_load_failed_to_those_with_the_key_alone(tmp_path: Path) -> None:
    model = ImageEmbeddings(tmp_path / "secret-place.pte")
    async with serving(model, load=False, api_key="secret") as client:
        await model.wait_for(lambda state: state.error is not None)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "secret-place" not in answer.text.replace(model.spec.name, "")
        assert str(tmp_path)[:12] not in answer.text
        reason = await client.get("/readyz", headers={"Authorization": "Bearer secret"})
        assert str(tmp_path)[:12] in reason.text
