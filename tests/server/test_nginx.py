"""The documented configuration of nginx, before a server: slow clients end at the proxy."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from .conftest import Server, picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx"),
]

CONFIGURATION = Path(__file__).resolve().parents[2] / "examples" / "deploy" / "nginx.conf"


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[str]:
    """nginx as documented, with shorter times."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstream = urlsplit(server.url).netloc
    text = CONFIGURATION.read_text()
    text = text.replace("aioembed:8000", upstream).replace(
        "listen 80;", f"listen 127.0.0.1:{port};"
    )
    text = text.replace("client_header_timeout 10s", "client_header_timeout 1s")
    text = text.replace("client_body_timeout 10s", "client_body_timeout 1s")
    folders = " ".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    complete = tmp_path / "nginx.conf"
    complete.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{text}\n}}\n"
    )
    nginx = shutil.which("nginx") or ""
    process = subprocess.Popen([nginx, "-c", str(complete), "-e", str(tmp_path / "error.log")])
    try:
        for attempt in range(200):
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            threading.Event().wait(0.05)
            assert attempt < 199
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_slow_clients_end_at_the_proxy_and_others_are_served(proxy: str) -> None:
    answer = httpx.post(f"{proxy}/v1/embeddings", files={"input": picture()}, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"]
    where = ("127.0.0.1", urlsplit(proxy).port or 0)
    post = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    for begun in (b"GET / HTTP/1.1\r\nHost:", post + b"Content-Length: 99\r\n\r\n{"):
        with socket.create_connection(where, timeout=60) as slow:
            slow.sendall(begun)
            assert slow.recv(12) in {b"", b"HTTP/1.1 408"}
    too_large = httpx.post(f"{proxy}/v1/embeddings", content=bytes(17 << 20), timeout=60)
    assert too_large.status_code == 413
