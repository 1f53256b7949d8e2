"""The benchmark and the chaos run keep working; a real nginx serves a large file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioembed.download import Cache, DownloadControl, Fetcher, Progress, Resource
from aioembed.testing import HubServer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MEGABYTES = 350
CONFIG = """
{user} worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {root}/access.log; sendfile on; gzip on; gzip_types *; gzip_min_length 1;
    client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;
    uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
    server {{ listen 127.0.0.1:{port}; root {root}/www; }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Any:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    www = tmp_path / "www"
    www.mkdir()
    config = tmp_path / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(root=tmp_path, port=port, user=user))
    with subprocess.Popen([program, "-p", str(tmp_path), "-c", str(config)]) as server:
        deadline = time.monotonic() + 10
        while not (tmp_path / "nginx.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", www
        server.terminate()


@pytest.mark.slow
@pytest.mark.anyio
async def test_350_megabytes_from_nginx_with_a_pause_in_between(nginx: Any, cache: Cache) -> None:
    origin, www = nginx
    with (www / "model.pte").open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(os.urandom(1_000_000))
    seen: list[Progress] = []
    control = DownloadControl()

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.fraction > 0.3 and not paused:
            paused.append(progress)
            control.pause()
            third_is_here.set()

    paused: list[Progress] = []
    third_is_here = anyio.Event()
    resource = Resource(f"{origin}/model.pte")
    async with anyio.create_task_group() as group:

        async def fetch() -> None:
            await Fetcher(cache).fetch([resource], on_progress=watch, control=control)

        group.start_soon(fetch)
        await third_is_here.wait()
        control.resume()
    [file] = await cache.list()
    assert file.size == MEGABYTES * 1_000_000
    assert await cache.verify(file) == file
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions.count(1.0) == 1
    log = (www.parent / "access.log").read_text().splitlines()
    assert [line.split('"')[2].split()[0] for line in log] == ["200", "206"]


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_short_chaos_run_leaves_nothing_wrong() -> None:
    printed = _run("chaos_download.py", "--downloads", "15", "--kills", "1", "--seed", "5")
    assert "wrong files and leaks: 0" in printed


@pytest.mark.slow
def test_a_longer_chaos_run_leaves_nothing_wrong() -> None:
    """`benchmarks/chaos_download.py` does 300 downloads."""
    printed = _run("chaos_download.py", "--downloads", "100", "--kills", "7")
    assert "wrong files and leaks: 0" in printed


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fetch_makes_no_blocking_call_on_the_event_loop(
    cache: Cache, content: bytes
) -> None:
    blockbuster = pytest.importorskip("blockbuster")
    async with HubServer() as hub:
        url = hub.add("someone/model", "model.pte", content)
        with blockbuster.blockbuster_ctx("aioembed"):
            fetcher = Fetcher(cache, endpoint=hub.endpoint)
            [file] = await fetcher.fetch([Resource(url)])
            assert await fetcher.find_cached([Resource(url)]) == [file]
            await cache.prune()
            await cache.delete(file)
