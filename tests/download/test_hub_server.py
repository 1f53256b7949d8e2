"""The hub on loopback that ships for users' tests."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import anyio
import httpx
import pytest

from aioembed.download import Cache, Fetcher, Resource
from aioembed.testing import HubServer
from aioembed.testing._loopback import LoopbackServer, Reply, Request

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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_huggingface_hub_itself_downloads_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    program = (
        "import sys; from huggingface_hub import hf_hub_download\n"
        "print(hf_hub_download('owner/name', 'folder/model.pte', revision='v1',"
        " cache_dir=sys.argv[1]))"
    )
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    content = bytes(range(256)) * 1000
    async with HubServer(token="hf_secret") as hub:
        hub.add("owner/name", "folder/model.pte", content, revision="v1")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = await anyio.run_process([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert not any("authorization" in asked.headers for asked in hub.storage_requests)
    path = anyio.Path(done.stdout.decode().strip().splitlines()[-1])
    assert await path.read_bytes() == content
    # huggingface_hub names its copy after the ETag.
    assert (await path.resolve()).name == hashlib.sha256(content).hexdigest()


async def test_a_renamed_repository_redirects_and_its_file_is_trusted(
    cache: Cache, content: bytes, sha256: str
) -> None:
    """The hub answers 307 with a relative address, then as usual."""

    def answer(request: Request) -> Reply:
        if "/old-owner/" in request.path:
            location = request.path.replace("/old-owner/", "/new-owner/")
            return Reply(307, headers={"Location": location})
        location = f"{storage.origin}/{sha256}"
        return Reply(302, headers={"Location": location, "X-Linked-Etag": f'"{sha256}"'})

    storage = LoopbackServer(lambda _: Reply(body=content))
    async with storage, LoopbackServer(answer) as hub:
        fetcher = Fetcher(cache, endpoint=hub.origin, token="hf_secret")
        url = "https://huggingface.co/old-owner/name/resolve/main/model.pte"
        [file] = await fetcher.fetch([Resource(url)])
    assert [request.headers["authorization"] for request in hub.requests] == [
        "Bearer hf_secret"
    ] * 2
    assert "authorization" not in storage.requests[0].headers
    assert (file.trusted, file.url) == (True, url)


async def test_an_exception_of_the_body_is_raised_unchanged() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with LoopbackServer(lambda _: Reply()):
            raise KeyError("mine")


async def test_there_is_no_address_before_the_server_runs() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        HubServer().add("owner/name", "model.pte", b"")
