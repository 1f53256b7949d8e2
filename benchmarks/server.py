"""Requests per second and latency of `aioembed serve` against other servers, in one run.

    python benchmarks/server.py [--seconds 5] [--rounds 2] [--clients 1 8 32] [--peers ...]

All serve CLIP ViT-B/32's image tower with random weights, one process each, and are sent the same
JPEG of about 50 KB. Every server runs alone, by turns. `fastapi` is a FastAPI application over
ONNX Runtime as its users write it: Pillow and the session in a worker thread. `litserve` is the
same over LitServe, which batches. Both run the fp32 ONNX file and the one that ONNX Runtime
quantised dynamically to int8. `infinity` is infinity_emb's server on torch. Peers that are not
installed are left out with a message. Making the programs needs the [export] extra, onnx and
onnxscript.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from http_load import Connection, photograph, request, served, upload
from peers import onnx_model
from programs import folder, program

_INFINITY = """
import torch
from infinity_emb.cli import cli
from transformers import CLIPModel

# Newer transformers than infinity knows return more than the tensor.
def tensor_alone(name):
    features = getattr(CLIPModel, name)

    def tensor_features(self, **inputs):
        found = features(self, **inputs)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    setattr(CLIPModel, name, tensor_features)

tensor_alone("get_image_features")
tensor_alone("get_text_features")
cli()
"""

GOAL = 1.6
"""Requests per second of `aioembed serve`, as a multiple of the fastest peer's."""

_EMBED = """
import io, os, sys
import numpy as np
import onnxruntime
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]

def pixels_of(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 224 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    image = image.crop((left, top, left + 224, top + 224))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return ((pixels - MEAN) / STD).astype(np.float32)

def embed(session, batch):
    vectors = session.run(None, {"pixel_values": batch})[0]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

def new_session():
    return onnxruntime.InferenceSession(os.environ["PEER_ONNX"])
"""

_FASTAPI = (
    _EMBED
    + """
import socket
import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.concurrency import run_in_threadpool

session = new_session()
app = FastAPI()

def work(data):
    return embed(session, pixels_of(data)[None])[0].tolist()

@app.post("/v1/embeddings")
async def embeddings(input: UploadFile):
    return {"data": [{"embedding": await run_in_threadpool(work, await input.read())}]}

@app.get("/readyz")
async def ready():
    return {}

listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
"""
)

_LITSERVE = (
    _EMBED
    + """
import socket
import litserve
from fastapi import UploadFile

class Clip(litserve.LitAPI):
    def setup(self, device):
        self.session = new_session()

    def decode_request(self, request):
        return pixels_of(request["input"].file.read())

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, batch):
        return embed(self.session, batch)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"data": [{"embedding": output.tolist()}]}

if __name__ == "__main__":
    api = Clip(max_batch_size=8, batch_timeout=0.002, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    print(f"http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
"""
)


@dataclass
class Contestant:
    """A server, and how it is asked."""

    name: str
    command: list[str]
    ask: bytes
    ready: str = "/readyz"
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def contestants(image: bytes, wanted: list[str]) -> Iterator[Contestant]:
    """Return this library's server, then its peers."""
    form = upload(image)
    serve = [sys.executable, "-W", "ignore", "-m", "aioembed", "serve", "--port", "0", "--model"]
    yield Contestant("aioembed int8", [*serve, str(program("clip_fast_int8"))], form)
    for peer, text in (("fastapi", _FASTAPI), ("litserve", _LITSERVE)):
        for precision in ("fp32", "int8") if peer in wanted else ():
            script = folder() / f"peer_{peer}.py"
            script.write_text(text)
            command = [sys.executable, "-W", "ignore", str(script)]
            environment = {"PEER_ONNX": str(onnx_model(precision))}
            needs = (peer, "onnxruntime", "uvicorn")
            yield Contestant(f"{peer} {precision}", command, form, "/readyz", environment, needs)
    if "infinity" in wanted:
        yield infinity(image)


def infinity(image: bytes) -> Contestant:
    """Return infinity's server, which is asked by a data URI and has no upload."""
    onnx_model("fp32")  # makes the checkpoint too
    data = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    body = json.dumps({"model": "clip", "input": data, "modality": "image"}).encode()
    command = [sys.executable, "-W", "ignore", "-c", _INFINITY, "v2", "--engine", "torch"]
    command += ["--host", "127.0.0.1", "--port", "7997"]
    command += ["--model-id", str(folder() / "clip_checkpoint"), "--served-model-name", "clip"]
    command += ["--device", "cpu", "--dtype", "float32"]
    return Contestant(
        "infinity fp32",
        command,
        request(body, path="/embeddings"),
        "/health",
        {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "INFINITY_BETTERTRANSFORMER": "0"},
        ("infinity_emb",),
    )


async def wait_ready(url: str, path: str) -> None:
    """Ask until the server says that it is ready."""
    raw = request(path=path, method="GET")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        connection = Connection(url)
        try:
            if await connection.ask(raw) == 200:
                return
        except OSError:
            pass  # its port is not open yet
        finally:
            await connection.close()
        await asyncio.sleep(0.1)
    raise TimeoutError(f"{url}{path} was not ready within 120 s")


@dataclass
class Taken:
    """What came of some seconds: the latencies, and the time until the last answer."""

    latencies: list[float]
    elapsed: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.elapsed

    def quantile(self, percent: int) -> float:
        """A latency in milliseconds."""
        cuts = statistics.quantiles(self.latencies, n=100, method="inclusive")
        return cuts[percent - 1] * 1e3


async def measure(url: str, raw: bytes, clients: int, seconds: float) -> Taken:
    """Ask for so many seconds; what has begun then is waited for."""
    latencies: list[float] = []

    async def ask(until: float) -> None:
        connection = Connection(url)
        while (sent := time.perf_counter()) < until:
            status = await connection.ask(raw)
            assert status == 200, f"{url} answered {status}"
            latencies.append(time.perf_counter() - sent)
        await connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask(began + seconds) for _ in range(clients)))
    return Taken(latencies, time.perf_counter() - began)


async def visit(url: str, one: Contestant, clients: list[int], seconds: float) -> dict[int, Taken]:
    """Warm a server up, and measure it with so many clients each."""
    await wait_ready(url, one.ready)
    await measure(url, one.ask, max(clients), 1.0)
    return {count: await measure(url, one.ask, count, seconds) for count in clients}


Found = dict[str, dict[int, list[Taken]]]


def run(options: argparse.Namespace, image: bytes) -> Found:
    """Let every server have its turn, in each round."""
    runners = list(contestants(image, options.peers))
    for one in runners:
        if one.missing:
            print(f"{one.name} is left out: {', '.join(one.missing)} is not installed")
    found: Found = {}
    for _ in range(options.rounds):
        for one in runners:
            if one.missing:
                continue
            with served(one.command, one.environment, grace=5) as server:
                print(f"  measuring {one.name}", file=sys.stderr)
                seen = asyncio.run(visit(server.url, one, options.clients, options.seconds))
            for clients, taken in seen.items():
                found.setdefault(one.name, {}).setdefault(clients, []).append(taken)
    return found


def report(found: Found, clients: list[int]) -> None:
    """Print medians over the rounds, ratios, and whether the goal is met."""
    for count in clients:
        rates: dict[str, float] = {}
        for name, runs in found.items():
            rates[name] = statistics.median(taken.rate for taken in runs[count])
            p50, p99 = (
                statistics.median(taken.quantile(percent) for taken in runs[count])
                for percent in (50, 99)
            )
            print(
                f"{count:3d} clients  {name:14} {rates[name]:7.1f} requests/s  "
                f"p50 {p50:7.1f} ms  p99 {p99:7.1f} ms"
            )
        ours = rates.pop("aioembed int8")
        print(f"{'':11} aioembed = {', '.join(f'{ours / r:.2f} x {n}' for n, r in rates.items())}")
        if rates:
            ratio = ours / max(rates.values())
            met = "met" if ratio >= GOAL else "not met"
            print(f"{'':11} {ratio:.2f} x the fastest; goal {GOAL:g} x: {met}")


def instructions() -> str:
    """Which of the instructions that int8 profits from this CPU has."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "instructions unknown"
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp", "i8mm")
    return (
        f"has {' '.join(name for name in wanted if name in flags) or 'none'} of {', '.join(wanted)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=["fastapi", "litserve", "infinity"])
    options = parser.parse_args()
    image = photograph()
    print(f"a JPEG of {len(image) / 1000:.0f} KB; {os.cpu_count()} CPUs, {instructions()}")
    report(run(options, image), options.clients)


if __name__ == "__main__":
    main()
