"""The FastAPI application, served by the command that it documents."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from .conftest import EXAMPLES

for _package in ("fastapi", "granian", "python_multipart"):
    pytest.importorskip(_package)

from sample_images import draw

pytestmark = pytest.mark.anyio


@contextmanager
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command of the docstring on a free port; yield its process and its address."""
    text = (EXAMPLES / "fastapi_app.py").read_text(encoding="utf-8")
    found = re.search("Run it with `(.+?)` from this folder", text)
    assert found
    program, *arguments = shlex.split(found[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=EXAMPLES,
        env=os.environ | {"GRANIAN_PORT": port},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def test_the_documented_command_serves_photos_and_sigterm_ends_it() -> None:
    with served() as (process, address):
        transport = httpx.AsyncHTTPTransport(retries=7)  # of the connection, while it starts
        async with httpx.AsyncClient(transport=transport, base_url=address, timeout=60) as client:
            upload = {"input": ("cat.png", draw(0))}
            embedded = await client.post("/embed/v1/embeddings", files=upload)
            assert len(embedded.json()["data"][0]["embedding"]) == 1280
            added = await client.post("/photos", files={"image": draw(1)})
            assert (added.status_code, added.json()) == (202, {"photo": 0})
            with anyio.fail_after(60):
                while (await client.get("/photos")).json() != {"0": "indexed"}:
                    pass  # it is embedded after the answer
            found = await client.post("/search", files={"image": draw(1)})
            assert found.json() == {"0": pytest.approx(1, abs=1e-5)}
        process.terminate()
        log, _ = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=60))
        assert process.returncode == 0, log
