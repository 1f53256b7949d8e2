"""Requests per second of `aioembed serve` against a FastAPI application over ONNX Runtime.

    python benchmarks/server.py --program clip_int8.pte --onnx clip_int8.onnx

Both serve CLIP ViT-B/32's image tower of the same weights, in one process, from an upload of a JPEG
of about 50 KB. The peer decodes and resizes with Pillow and runs in a thread, as its users write
it. Needs `pip install fastapi onnxruntime`. Without `--program`, the int8 program of `programs.py`
is served.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import numpy as np
from PIL import Image

from programs import program

CLIENTS = (1, 8, 32)

PEER = """
import io, os, socket, sys
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.concurrency import run_in_threadpool
from PIL import Image

session = onnxruntime.InferenceSession(os.environ["PEER_ONNX"], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()

def embed(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.resize((224, 224), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    vector = session.run(None, {name: pixels})[0][0]
    return (vector / np.linalg.norm(vector)).tolist()

@app.post("/v1/embeddings")
async def embeddings(input: UploadFile):
    return {"data": [{"embedding": await run_in_threadpool(embed, await input.read())}]}

@app.get("/readyz")
async def ready():
    return {}

listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
server.run(sockets=[listener])
"""


def photograph() -> bytes:
    """Draw a JPEG of about 50 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def served(command: list[str], **environment: str) -> Iterator[str]:
    server = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert server.stderr is not None
        match = re.search(r"http://\S+", server.stderr.readline())
        assert match, f"{command[0]} did not start"
        yield match[0]
    finally:
        server.terminate()
        server.wait(60)


async def measure(url: str, image: bytes, clients: int, seconds: float) -> list[float]:
    """Return the latencies of all requests that ended within so many seconds."""
    latencies: list[float] = []

    async def ask(client: httpx.AsyncClient, until: float) -> None:
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = await client.post("/v1/embeddings", files={"input": ("a.jpg", image)})
            answer.raise_for_status()
            latencies.append(time.perf_counter() - began)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # another process
            await anyio.sleep(0.1)
        await ask(client, time.perf_counter() + 1)
        latencies.clear()
        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(ask, client, time.perf_counter() + seconds)
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", type=Path)
    parser.add_argument("--onnx", type=Path, required=True, help="of the same weights")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    path = options.program or program("clip_fast_int8")
    image = photograph()
    print(f"a JPEG of {len(image) / 1000:.0f} KB; {os.cpu_count()} CPUs")
    ours = [sys.executable, "-m", "aioembed", "serve", "--port", "0", "--model", str(path)]
    peer = [sys.executable, "-c", PEER]
    with served(ours) as our_url, served(peer, PEER_ONNX=str(options.onnx)) as peer_url:
        for clients in CLIENTS:
            rates = {}
            for name, url in (("aioembed serve", our_url), ("FastAPI + ONNX Runtime", peer_url)):
                taken = anyio.run(measure, url, image, clients, options.seconds)
                p50, p99 = np.percentile(taken, [50, 99]) * 1000
                rates[name] = len(taken) / options.seconds
                print(
                    f"{clients:3d} clients  {name:24s} {rates[name]:7.1f} requests/s  "
                    f"p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"
                )
            first, second = rates.values()
            print(f"{clients:3d} clients  ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
