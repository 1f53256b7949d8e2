"""Certificates are what the environment trusts."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener

from aioembed.download import Cache, Fetcher, FetchLimits, Resource
from aioembed.errors import DownloadFailed, InvalidConfig

from .conftest import Scripted, Step

pytestmark = pytest.mark.anyio


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """Another one than the machine's, which SSL_CERT_FILE names."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return ca


async def copy(source: ByteReceiveStream, to: ByteSendStream) -> None:
    async for chunk in source:
        await to.send(chunk)


@asynccontextmanager
async def encrypted(server: Scripted, authority: trustme.CA) -> AsyncIterator[str]:
    """Stand in front of a server with a certificate for `localhost`; yields the origin."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    port = urlsplit(server.origin).port
    assert port

    async def serve(client: ByteStream) -> None:
        behind = await anyio.connect_tcp("127.0.0.1", port)
        async with client, behind, anyio.create_task_group() as group:
            group.start_soon(copy, client, behind)
            await copy(behind, client)
            group.cancel_scope.cancel()

    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    listener = TLSListener(plain, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"https://localhost:{plain.extra(SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


async def test_a_file_comes_encrypted_from_a_server_that_is_trusted(
    authority: trustme.CA, serve_file: Callable[..., Step], content: bytes, cache: Cache
) -> None:
    async with Scripted(serve_file()) as server, encrypted(server, authority) as origin:
        (file,) = await Fetcher(cache).fetch([Resource(f"{origin}/model.pte")])
    assert file.path.read_bytes() == content


@pytest.mark.usefixtures("authority")
async def test_a_server_with_another_certificate_gets_no_request(
    serve_file: Callable[..., Step], cache: Cache, leftovers: Callable[[], list[str]]
) -> None:
    fetcher = Fetcher(cache, limits=FetchLimits(retries=0))
    async with Scripted(serve_file()) as server, encrypted(server, trustme.CA()) as origin:
        with pytest.raises(DownloadFailed, match="certificate verify failed"):
            await fetcher.fetch([Resource(f"{origin}/model.pte")])
        assert server.requests == []
    assert not any("model.pte" in name for name in leftovers())


async def test_certificates_that_cannot_be_read_are_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, serve_file: Callable[..., Step], cache: Cache
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/there/is/none.pem")
    async with Scripted(serve_file()) as server:
        with pytest.raises(InvalidConfig, match="SSL_CERT_FILE"):
            await Fetcher(cache).fetch([Resource(server.origin.replace("http", "https") + "/m")])
        assert server.connections == 0
