"""Embeddings over HTTP as a Ray Serve deployment that scales with its requests.

python examples/ray_serve.py demo     # offline: starts it, sends a request, stops it
serve run ray_serve:app               # from this folder, on a cluster; then POST /v1/embeddings
"""

from __future__ import annotations

import socket
import sys

import httpx
import ray
from fastapi import FastAPI
from ray import serve
from sample_images import draw

from aioembed import ImageEmbeddings, SourcePolicy, Threads
from aioembed.integrations import fastapi as embeddings

CPUS = 1  # of each replica, which has its own model


def application() -> FastAPI:
    """Build the application; called in each replica."""
    policy = SourcePolicy.untrusted()
    threads = Threads(inference=CPUS, preprocess=CPUS)
    return embeddings.app(ImageEmbeddings(source_policy=policy, threads=threads))


deployment = serve.deployment(
    name="embeddings",
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": CPUS},
)
app = deployment(serve.ingress(application)()).bind()


def demo() -> None:
    """Request the vectors of two pictures from a deployment on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app)
    files = [("input", (f"{number}.png", draw(number))) for number in range(2)]
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", files=files, timeout=60)
    answer.raise_for_status()
    print(*(f"a vector of {len(item['embedding'])}" for item in answer.json()["data"]), sep="\n")
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1:] != ["demo"]:
        sys.exit("usage: python ray_serve.py demo, or: serve run ray_serve:app")
    demo()
