"""A request that has been answered leaves nothing to the garbage collector."""

from __future__ import annotations

import base64
import gc
import json
import weakref
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message

from aioembed import ImageEmbeddings
from aioembed.integrations.fastapi import app

from .conftest import picture, post_scope

pytestmark = pytest.mark.anyio

GOOD = base64.b64encode(picture()).decode()
BODIES = {
    "embedded": {"input": GOOD},
    "several": {"input": [GOOD, GOOD]},
    "not an image": {"input": "data:;base64,aGVsbG8="},
    "private URL": {"input": "http://127.0.0.1/a"},
    "invalid": {"input": [[]]},
    "large and invalid": {"input": GOOD * 1000, "inputs": 1},
}


class Client:
    """Sends one body and keeps the connection open."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.statuses: list[int] = []

    async def receive(self) -> Message:
        """The body, and nothing after it."""
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        """Keep the status."""
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counts free memory."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("case", BODIES)
async def test_a_request_is_freed_when_it_has_been_answered(
    tiny: ImageEmbeddings, case: str
) -> None:
    async with tiny:
        await tiny.load()
        routes = app(tiny)
        client = Client(json.dumps(BODIES[case]).encode())
        await routes(post_scope(), client.receive, client.send)
        assert client.statuses[0] < 500
        freed = weakref.ref(client)
        del client
        await anyio.lowlevel.checkpoint()
        assert freed() is None
