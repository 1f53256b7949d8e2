"""Multipart forms as fields, and the pace at which bodies are checked."""

from __future__ import annotations

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioembed.integrations.starlette.forms import form_fields
from aioembed.integrations.starlette.pace import Pace
from aioembed.integrations.starlette.problems import Problem


@given(
    files=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)
@settings(max_examples=100, deadline=None, database=None)
def test_what_httpx_sends_is_read_to_the_byte(files: list[bytes], text: str) -> None:
    uploads = [("input", ('a "b".png', content, "image/png")) for content in files]
    request = httpx.Request("POST", "http://server/", files=uploads, data={"text": text})
    fields = form_fields(request.read(), request.headers["content-type"])
    assert fields == {"text": [text], "input": files}


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"", "multipart/form-data", "no boundary"),
        (b"--x\r\n\r\na\r\n--x--\r\n", "multipart/form-data; boundary=x", "no name"),
        (b"nothing of the kind", "multipart/form-data; boundary=x", "malformed"),
        (b"--x\r\nA: b", "multipart/form-data; boundary=x", "malformed"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1001 + b"--x--\r\n",
            "multipart/form-data; boundary=x",
            "more than 1000 parts",
        ),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: str, said: str) -> None:
    with pytest.raises(Problem, match=said) as refused:
        form_fields(body, content_type)
    assert refused.value.status == 400


@pytest.mark.anyio
async def test_bodies_take_turns_and_others_come_between() -> None:
    pace = Pace()
    seen: list[str] = []
    turns = 0

    async def check() -> None:
        await pace.turn()
        seen.append(f"body in turn {turns}")

    async def count_turns() -> None:
        nonlocal turns
        while len(seen) < 5:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        for _ in range(5):
            group.start_soon(check)
    assert len(set(seen)) == 5
