"""The hub on loopback that ships for users' tests."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from aioembed.testing import HubServer, LoopbackServer, Reply

pytestmark = pytest.mark.anyio


async def test_a_file_redirects_to_another_origin_and_announces_hash_size_and_commit() -> None:
    async with HubServer() as hub, httpx.AsyncClient() as client:
        url = hub.add("owner/name", "folder/model.pte", b"0123456789", revision="v1")
        assert url == f"{hub.endpoint}/owner/name/resolve/v1/folder/model.pte"
        answer = await client.get(url)
        assert answer.status_code == 302
        assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
        assert answer.headers["X-Linked-Size"] == "10"
        assert len(answer.headers["X-Repo-Commit"]) == 40
        target = httpx.URL(answer.headers["Location"])
        assert target.port != httpx.URL(url).port
        assert (await client.get(target)).content == b"0123456789"


async def test_the_other_origin_knows_range_if_range_and_416() -> None:
    async with HubServer() as hub, httpx.AsyncClient(follow_redirects=True) as client:
        url = hub.add("owner/name", "model.pte", b"0123456789")
        etag = (await client.get(url)).headers["ETag"]
        part = await client.get(url, headers={"Range": "bytes=4-", "If-Range": etag})
        assert (part.status_code, part.content) == (206, b"456789")
        assert part.headers["Content-Range"] == "bytes 4-9/10"
        whole = await client.get(url, headers={"Range": "bytes=4-", "If-Range": '"old"'})
        assert (whole.status_code, whole.content) == (200, b"0123456789")
        beyond = await client.get(url, headers={"Range": "bytes=10-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */10")


async def test_a_missing_file_is_404_and_a_missing_token_401() -> None:
    async with HubServer(token="t") as hub, httpx.AsyncClient() as client:
        url = hub.add("owner/name", "model.pte", b"")
        assert (await client.get(url)).status_code == 401
        headers = {"Authorization": "Bearer t"}
        assert (await client.head(url, headers=headers)).status_code == 302
        assert (await client.get(url + "x", headers=headers)).status_code == 404


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with LoopbackServer(lambda _: Reply()):
            raise KeyError("mine")


async def test_there_is_no_address_before_the_server_runs() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        HubServer().add("owner/name", "model.pte", b"")
