"""Applications in this process, and a server in a separate one."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

for _package in ("fastapi", "granian", "prometheus_client", "typer"):
    pytest.importorskip(_package)
pytest.importorskip("python_multipart")

from fastapi import FastAPI
from starlette.types import Scope

from aioembed import ImageEmbeddings
from aioembed.handle import EmbeddingHandle
from aioembed.integrations.fastapi import Models, ModelsArgument, app

from ..handle.conftest import Brake, inference
from ..programs import TINY_IMAGE
from .served import Server, served, wait_ready

__all__ = ["Brake", "Server", "inference", "wait_ready"]

FIXTURES = Path(__file__).resolve().parents[1] / "text" / "fixtures"
Serving = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def picture(seed: int = 0, form: str = "PNG", side: int = 64) -> bytes:
    """Return a file of coarse random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(file, form)
    return file.getvalue()


@asynccontextmanager
async def serving(models: ModelsArgument, **options: object) -> AsyncIterator[httpx.AsyncClient]:
    """Serve models in this process, all of them loaded unless `load=False`."""
    load = options.pop("load", True)
    served = Models.of(models)
    application = app(served, **options)  # type: ignore[arg-type]
    handles = [one.handle for one in served] if load else []
    async with running(application, *handles) as client:
        yield client


@asynccontextmanager
async def running(
    application: FastAPI, *handles: EmbeddingHandle[Any]
) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application in this process, these handles of it loaded."""
    async with application.router.lifespan_context(application):
        for handle in handles:
            await handle.load()
        transport = httpx.ASGITransport(application, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


def post_scope(path: str = "/v1/embeddings", **headers: str) -> Scope:
    """Return what an ASGI server says of a request with a body."""
    fields = {"content-type": "application/json", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }


@pytest.fixture
async def tiny() -> ImageEmbeddings:
    """The embedded model, to be served."""
    return ImageEmbeddings(TINY_IMAGE)


@pytest.fixture
async def client(tiny: ImageEmbeddings) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to a server of the embedded model."""
    async with serving(tiny) as talking:
        yield talking


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Start `aioembed serve` on a free port; stopped at the end at the latest."""
    with ExitStack() as running:
        yield lambda *arguments: running.enter_context(served(*arguments))


@pytest.fixture(scope="session")
def clip_arguments() -> list[str]:
    """Options that serve the small image and text models under one name, and the embedded one."""
    pytest.importorskip("tokenizers")
    image, text = FIXTURES / "image.pte", FIXTURES / "padded_text.pte"
    return [
        "--model",
        "efficientnet-lite0",
        "--model",
        f"clip={image}",
        "--text-model",
        f"clip={text}",
    ]


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], clip_arguments: list[str]) -> Server:
    """A server of three models that are loaded, with what most tests of a process need."""
    started = start_server(
        *clip_arguments,
        *("--head-timeout", "1", "--body-timeout", "2", "--replicas", "2"),
        *("--access-log", "--cors-origin", "https://app.example"),
    )
    wait_ready(started.url)
    return started
