"""Multipart forms: files byte for byte, and what is not a form."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from aioembed.integrations.fastapi.problems import Problem
from aioembed.integrations.fastapi.route import form_fields

pytestmark = pytest.mark.anyio


def received(body: bytes, content_type: str) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


@given(
    files=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)
@settings(max_examples=100, deadline=None, database=None)
async def test_what_httpx_sends_is_read_to_the_byte(files: list[bytes], text: str) -> None:
    uploads = [("input", ('a "b".png', content, "image/png")) for content in files]
    request = httpx.Request("POST", "http://server/", files=uploads, data={"text": text})
    fields = await form_fields(received(request.read(), request.headers["content-type"]), 16)
    assert fields == {"text": text, "input": files}


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"", "multipart/form-data", "boundary"),
        (b"--x\r\n\r\na\r\n--x--\r\n", "multipart/form-data; boundary=x", "malformed"),
        (b"nothing of the kind", "multipart/form-data; boundary=x", "malformed"),
        (b"--x\r\nA: b", "multipart/form-data; boundary=x", "malformed"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1001 + b"--x--\r\n",
            "multipart/form-data; boundary=x",
            "Too many fields",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\r\n' * 99
            + b"--x--\r\n",
            "multipart/form-data; boundary=x",
            "is the most in one request",
        ),
    ],
)
async def test_what_is_not_a_form_is_refused(body: bytes, content_type: str, said: str) -> None:
    with pytest.raises(Problem, match=said) as refused:
        await form_fields(received(body, content_type), 16)
    assert refused.value.status == 400
