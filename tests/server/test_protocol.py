"""HTTP/1.1 as the server speaks it, on a connection in this process."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from aioembed.integrations.starlette.protocol import punctual_protocol

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def _read_answer_while_a_head_is_late(next_head: bytes) -> bytes:
    """Ask, begin to ask again, and read what comes until the connection is closed."""
    late = asyncio.Event()

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await late.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Protocol(punctual_protocol(head_timeout=0.01)):  # type: ignore[misc]  # made at runtime
        def _close(self) -> None:
            super()._close()
            late.set()

    config = uvicorn.Config(application, lifespan="off", log_level="critical")
    server = await asyncio.get_running_loop().create_server(
        lambda: Protocol(config, ServerState(), {}), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(REQUEST + next_head)
        answer = await reader.read()
        writer.close()
    return answer


def test_an_answer_under_way_is_sent_before_a_late_head_closes_the_connection() -> None:
    answer = asyncio.run(_read_answer_while_a_head_is_late(b"GET /"))
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"connection: close" in answer
