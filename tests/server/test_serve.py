"""`aioembed serve` as a process: OpenAI's client, curl, SIGTERM, workers, slow connections."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from aioembed.cli.app import app as aioembed

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
        assert wrong.value.param == "input[0]"


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


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_finishes_what_runs_and_exits_with_0(start_server: Start, workers: int) -> None:
    """The running request is one whose body has come only in part."""
    server = start_server("--workers", workers)
    wait_ready(server.url)
    body = json.dumps({"input": DATA_URI}).encode()
    with connect(server) as running, httpx.stream("GET", f"{server.url}/v1/state/stream") as states:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        running.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:10])
        while "aioembed_requests_running 3.0" not in get(f"{server.url}/metrics").text:
            assert server.process.poll() is None
        server.process.terminate()
        assert "is_stopping" in states.read().decode()  # the stream ends by itself
        assert server.process.poll() is None
        running.sendall(body[10:])
        answer = b"".join(iter(lambda: running.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups of this kind")
def test_ctrl_c_reaches_all_processes_and_ends_them(start_server: Start) -> None:
    server = start_server()
    wait_ready(server.url)
    processes = [server.process.pid, *workers_of(server)]
    for process in reversed(processes):  # as a terminal and systemd do
        os.kill(process, signal.SIGINT)
    assert server.process.wait(60) == 0
    assert not any(is_alive(process) for process in processes)


def test_a_killed_worker_is_replaced_and_ends_with_its_parent(start_server: Start) -> None:
    server = start_server()
    wait_ready(server.url)
    (first,) = workers_of(server)
    os.kill(first, signal.SIGKILL)
    until(
        lambda: get(f"{server.url}/readyz").status_code == 200 and first not in workers_of(server)
    )
    (second,) = workers_of(server)
    server.process.kill()
    server.process.wait(60)
    until(lambda: not is_alive(second))
    with pytest.raises(httpx.TransportError):
        get(f"{server.url}/healthz")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's arenas")
def test_workers_have_few_arenas_to_leave_memory_in(server: Server) -> None:
    (worker,) = workers_of(server)
    environment = pytest.importorskip("psutil").Process(worker).environ()
    assert environment["MALLOC_ARENA_MAX"] == "2"


def test_a_head_that_does_not_come_closes_the_connection(server: Server) -> None:
    with connect(server) as slow, connect(server) as silent:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert get(f"{server.url}/healthz").status_code == 200
        assert slow.recv(10) == b""
        assert silent.recv(10) == b""


def test_a_head_without_end_is_refused(server: Server) -> None:
    head = b"GET /healthz HTTP/1.1\r\nX: "
    with connect(server) as endless:
        endless.sendall(head.ljust((1 << 16) + 1, b"a"))
        answer = b"".join(iter(lambda: endless.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 431")
    assert get(f"{server.url}/healthz").status_code == 200


def test_a_body_that_stalls_is_answered_and_closed(server: Server) -> None:
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n"
    begun = (
        f"{head}Content-Length: 99\r\n\r\n",
        f"{head}Content-Length: 99\r\n\r\n{{",
        chunked,
        f"{chunked}2\r\n{{}}\r\n0\r\nX: y\r\n",
        f"{chunked}2;a=",
        f"{head}Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nx",
    )
    with ExitStack() as stack:
        slow = {one: stack.enter_context(connect(server)) for one in begun}
        for one, connection in slow.items():
            connection.sendall(one.encode())
        for one, connection in slow.items():
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # noqa: B023  # called here
            wanted = b"HTTP/1.1 200" if one.startswith("GET") else b"HTTP/1.1 408"
            assert wanted in answer, one


def test_a_server_that_fails_fast_ends_with_the_models_exit_code(tmp_path: Path) -> None:
    options = ("--fail-fast", "--port", "0", "--model", str(tmp_path / "missing.pte"))
    command = [sys.executable, "-m", "aioembed", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "cannot be loaded" in done.stderr


def test_requests_are_logged_with_their_ids(server: Server) -> None:
    answer = get(f"{server.url}/healthz", headers={"X-Request-ID": "my-own.id"})
    assert answer.headers["x-request-id"] == "my-own.id"
    other = get(f"{server.url}/nothing", headers={"X-Request-ID": "a b"})
    assert "a b" not in other.headers.get("x-request-id", "")
    until(lambda: re.search(r"GET /healthz 200 [\d.]+ ms my-own.id", "".join(server.log)))
    until(lambda: re.search(r"GET /nothing 404 [\d.]+ ms", "".join(server.log)))


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a Unix socket, under a path, with a file of keys, whose model is missing."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("has no Unix sockets")
    folder = tmp_path_factory.mktemp("socket")
    keys = folder / "keys"
    keys.write_text("# mine\nfirst\n\nsecond\n")
    options = ("--uds", folder / "s", "--root-path", "/embed", "--api-key-file", keys)
    with served(*options, "--model", folder / "missing.pte", address=r"unix:\S+") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def socket_client(socket_server: Server) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=socket_server.url.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://server", timeout=60) as client:
        yield client


def test_a_unix_socket_and_a_root_path(socket_client: httpx.Client) -> None:
    assert socket_client.get("/healthz").status_code == 200
    assert socket_client.get("/openapi.json").json()["servers"] == [{"url": "/embed"}]


def test_the_log_says_why_a_model_cannot_be_loaded(
    socket_server: Server, socket_client: httpx.Client
) -> None:
    until(
        lambda: any("cannot be loaded" in one and "missing.pte" in one for one in socket_server.log)
    )
    assert socket_client.get("/readyz").status_code == 503


def test_any_key_of_a_file_is_enough(socket_client: httpx.Client) -> None:
    for key, status in {"first": 200, "second": 200, "# mine": 401}.items():
        headers = {"Authorization": f"Bearer {key}"}
        assert socket_client.get("/v1/models", headers=headers).status_code == status


def test_the_preflight_of_openais_javascript_client_is_answered(server: Server) -> None:
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    url = f"{server.url}/v1/embeddings"
    assert httpx.options(url, timeout=60, headers=headers).status_code == 200
    headers["Origin"] = "https://x"
    assert httpx.options(url, timeout=60, headers=headers).status_code == 400


_WITH_FEW_DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))  # granian raises the soft one itself
os.execv(sys.executable, [sys.executable, "-m", "aioembed", *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of descriptors")
def test_out_of_descriptors_the_server_refuses_and_recovers() -> None:
    with served(program=("-c", _WITH_FEW_DESCRIPTORS)) as server:
        wait_ready(server.url)
        with ExitStack() as idle:
            for _ in range(200):
                idle.enter_context(connect(server))
            assert server.process.poll() is None
        until(lambda: get(f"{server.url}/healthz").status_code == 200)
        assert server.stop() == 0


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
        for _ in range(20):
            answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": DATA_URI}, timeout=60)
            assert answer.status_code == 200
        figures = get(f"{server.url}/metrics").text  # of both
        assert (
            'aioembed_requests_total{method="POST",path="/v1/embeddings",status="200"} 20.0'
            in figures
        )
        assert "aioembed_model_stage_seconds_count" in figures
        assert server.stop() == 0
    assert not (tmp_path / "EXECUTED").exists()


def test_replicas_serve_as_one_model(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": [DATA_URI] * 8}, timeout=60)
    first, *others = (one["embedding"] for one in answer.json()["data"])
    assert len(others) == 7
    np.testing.assert_allclose(others, [first] * 7, atol=1e-5)


def test_what_cannot_be_served_ends_immediately(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, said in (
            (("--port", port), 2, "cannot listen on"),
            (("--replicas", "2", "--threads", "2"), 2, "one thread each"),
            (("--model", "efficientnet-lite"), 3, "did you mean efficientnet-lite0"),
            (("--api-key-file", str(empty)), 2, "has no key"),
            (("--preload", "efficientnet-lite0"), 2, "goes with --max-memory"),
            (("--preload", "other", "--max-memory", "9"), 2, "named efficientnet-lite0"),
            (("--idle-timeout", "0"), 2, "above 0, `auto` or `never`"),
            (("--max-memory", "-1"), 2, "--max-memory"),
        ):
            done = run(*arguments)
            assert done.exit_code == code, done.stderr
            assert said in done.stderr


@pytest.mark.parametrize("key", ["", " ", "\t"])
def test_an_empty_key_opens_nothing(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    by_option = run("--api-key", key)
    monkeypatch.setenv("AIOEMBED_API_KEY", key)
    for done in (by_option, run()):
        assert done.exit_code == 2
        assert "empty" in done.stderr


def run(*arguments: str) -> Result:
    """Run the command in this process, which it ends before it serves."""
    return CliRunner().invoke(aioembed, ["serve", *arguments])


def get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=60, **options)  # the machine may be busy


def until(happened: Callable[[], object]) -> None:
    """Wait for what another process does; a server that does not answer may yet."""
    for _ in range(1200):
        with suppress(httpx.TransportError):
            if happened():
                return
        threading.Event().wait(0.05)
    pytest.fail("it has not happened within a minute")


def workers_of(server: Server) -> list[int]:
    psutil = pytest.importorskip("psutil")
    children = psutil.Process(server.process.pid).children()
    return [one.pid for one in children if "spawn_main" in " ".join(one.cmdline())]


def is_alive(process: int) -> bool:
    psutil = pytest.importorskip("psutil")
    with suppress(psutil.NoSuchProcess):
        alive: bool = psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        return alive
    return False
