"""`aioembed serve` as a process: OpenAI's client, curl, SIGTERM, workers, slow connections."""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import uvicorn

from aioembed.integrations.starlette import serving

from .conftest import Server, picture, wait_ready
from .served import served

Start = Callable[..., Server]

DATA_URI = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"


def test_the_openai_client_works_unchanged(server: Server) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        images = client.embeddings.create(
            model="clip", input=[DATA_URI, DATA_URI], extra_body={"modality": "image"}
        )
        text = client.embeddings.create(model="clip", input="a cat", encoding_format="float")
        assert len(images.data) == 2
        assert np.linalg.norm(images.data[1].embedding) == pytest.approx(1, abs=1e-5)
        assert len(text.data[0].embedding) == len(images.data[0].embedding)
        assert text.usage.prompt_tokens > 2
        assert {model.id for model in client.models.list()} == {"efficientnet-lite0", "clip"}
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="nothing", input="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.embeddings.create(model="efficientnet-lite0", input=["http://127.0.0.1/x"])
        assert wrong.value.param == "input"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_files(server: Server, tmp_path: Path) -> None:
    for seed in range(2):
        (tmp_path / f"{seed}.jpg").write_bytes(picture(seed, "JPEG"))
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--form",
        "model=efficientnet-lite0",
    ]
    files = [part for seed in range(2) for part in ("--form", f"input=@{tmp_path}/{seed}.jpg")]
    done = subprocess.run(
        [*command, *files, f"{server.url}/v1/embeddings"], capture_output=True, check=True
    )
    assert [len(one["embedding"]) for one in json.loads(done.stdout)["data"]] == [1280, 1280]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("chunked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_gigabyte_is_refused_without_being_read(
    server: Server, tmp_path: Path, chunked: bool
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1_000_000_000)
    command = ["curl", "--silent", "--output", "-", "--write-out", "\n%{http_code} %{size_upload}"]
    headers = ["--header", "Content-Type: application/json", "--header", "Expect:"]
    if chunked:
        headers += ["--header", "Transfer-Encoding: chunked"]
    upload = ["--request", "POST", "--upload-file", str(huge)]
    done = subprocess.run(
        [*command, *headers, *upload, f"{server.url}/v1/embeddings"],
        capture_output=True,
        check=False,
    )
    body, _, figures = done.stdout.decode().rpartition("\n")
    status, sent = figures.split()
    assert status == "413"
    assert json.loads(body)["error"]["code"] == "body_too_large"
    assert int(sent) < 100_000_000


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)


def test_sigterm_finishes_what_runs_refuses_the_rest_and_exits_with_0(start_server: Start) -> None:
    """The running request is one whose body has come only in part."""
    server = start_server()
    wait_ready(server.url)
    body = json.dumps({"input": DATA_URI}).encode()
    with connect(server) as running, httpx.Client(base_url=server.url, timeout=60) as client:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        running.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:10])
        while "aioembed_requests_running 2.0" not in client.get("/metrics").text:
            pass
        server.process.terminate()
        while not client.get("/readyz").json()["is_stopping"]:
            pass
        refused = client.post("/v1/embeddings", content=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_stopping"
        assert server.process.poll() is None
        running.sendall(body[10:])
        answer = b"".join(iter(lambda: running.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(60) == 0


def test_a_head_that_does_not_come_closes_the_connection(server: Server) -> None:
    with connect(server) as slow, connect(server) as silent:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert slow.recv(10) == b""
        assert silent.recv(10) == b""


def test_a_head_without_end_is_refused(server: Server) -> None:
    head = b"GET /healthz HTTP/1.1\r\nX: "
    with connect(server) as endless:
        endless.sendall(head.ljust((1 << 16) + 1, b"a"))
        answer = b"".join(iter(lambda: endless.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors by /proc")
def test_out_of_descriptors_the_server_refuses_and_recovers() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with served() as server:
            wait_ready(server.url)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with ExitStack() as idle:
                for _ in range(200):
                    idle.enter_context(connect(server))
                assert server.process.poll() is None
            while True:
                with suppress(httpx.TransportError):
                    assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
                    break
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_workers_share_one_port_and_stop_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They import nothing from the folder that the server was started in."""
    command = tmp_path / "bin" / "aioembed"
    command.parent.mkdir()
    command.write_text(
        "if __name__ == '__main__':\n    from aioembed.cli import main\n    main()\n"
    )
    (tmp_path / "socket.py").write_text("open('EXECUTED', 'w'); raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    with served("--workers", "2", program=(str(command),)) as server:
        wait_ready(server.url)
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": DATA_URI}, timeout=60)
        assert answer.status_code == 200
        assert server.stop() == 0
    assert not (tmp_path / "EXECUTED").exists()


def test_replicas_serve_as_one_model(start_server: Start) -> None:
    server = start_server("--replicas", "2")
    wait_ready(server.url)
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": [DATA_URI] * 8}, timeout=60)
    first, *others = (one["embedding"] for one in answer.json()["data"])
    assert len(others) == 7
    np.testing.assert_allclose(others, [first] * 7, atol=1e-5)
    assert server.stop() == 0


def test_the_process_is_prepared_for_the_loop_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda _self, **_options: frozen.append(gc.get_freeze_count())
    )
    options = serving.ServerOptions(models=(serving.ModelChoice(source="efficientnet-lite0"),))
    before = gc.get_freeze_count()
    try:
        with serving.listen("127.0.0.1", 0) as listener:
            serving.serve(options, listener)
    finally:
        gc.unfreeze()
    assert frozen[0] > before + 10_000


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aioembed", "serve", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_what_cannot_be_served_ends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr
    both = run("--replicas", "2", "--threads", "2")
    assert both.returncode == 2
    assert "give one of both" in both.stderr
    unknown = run("--model", "tiny")
    assert unknown.returncode == 3
    assert "did you mean efficientnet-lite0" in unknown.stderr


@pytest.mark.parametrize("key", ["", " ", "\t"])
def test_an_empty_key_opens_nothing(key: str) -> None:
    for done in (run(AIOEMBED_API_KEY=key), run("--api-key", key)):
        assert done.returncode == 2
        assert "empty" in done.stderr
