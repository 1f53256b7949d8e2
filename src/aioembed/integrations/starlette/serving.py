"""A server of its own: uvicorn around one router, stopping without losing a request."""

from __future__ import annotations

import gc
import socket
import time
from pathlib import Path
from types import FrameType
from typing import ClassVar

import uvicorn
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from aioembed.errors import InvalidConfig
from aioembed.image import ImageEmbeddings
from aioembed.images import SourcePolicy
from aioembed.models import Modality, resolve_model
from aioembed.text import TextEmbeddings
from aioembed.tokenize import Truncate

from .drain import Drain
from .limits import ServerLimits
from .models import Handle
from .problems import problem_of
from .protocol import punctual_protocol
from .routing import lifespan, router

__all__ = ["ModelChoice", "ServerOptions", "application", "listen", "serve"]

_CLOSING_SECONDS = 5


class ModelChoice(BaseModel):
    """One model to serve.

    Attributes:
        source: A registered name, a URL or a path.
        modality: What it embeds, where the source does not say.
        name: That clients give; the model's own where None.
        tokenizer: Of a text model that has none beside it.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    source: str
    modality: Modality = "image"
    name: str | None = None
    tokenizer: str | None = None


class ServerOptions(BaseModel):
    """Everything that a worker process needs to know.

    Attributes:
        models: At least one.
        api_key: Wanted from clients, if given.
        policy: What images may be and where they may come from.
        limits: How much one request may ask for.
        cors_origins: Web pages of other origins that may call; none by default.
        max_pending: Most embeddings that may wait or run, for each model.
        threads: As for `ImageEmbeddings`, in each worker.
        replicas: As for `ImageEmbeddings`, in each worker.
        truncate: What becomes of texts that are too long.
        cache_dir: As for `ImageEmbeddings`.
        offline: As for `ImageEmbeddings`.
        head_timeout: Seconds that a request's head may take to arrive.
        grace: Seconds that running requests may take when the server stops.
        log_level: Of uvicorn.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    models: tuple[ModelChoice, ...]
    api_key: str | None = None
    policy: SourcePolicy = SourcePolicy.untrusted()
    limits: ServerLimits = ServerLimits()
    cors_origins: tuple[str, ...] = ()
    max_pending: PositiveInt = 1024
    threads: PositiveInt | None = None
    replicas: PositiveInt = 1
    truncate: Truncate = "error"
    cache_dir: Path | None = None
    offline: bool | None = None
    head_timeout: PositiveFloat = 10.0
    grace: PositiveFloat = 30.0
    log_level: str = "warning"


def application(options: ServerOptions, drain: Drain | None = None) -> Starlette:
    """Return the server's application. Making it does no I/O.

    Args:
        options: What to serve, and how.
        drain: Shared with the server that stops it.

    Raises:
        InvalidConfig: An option that cannot work.
        InvalidModelSource: A model source is nothing that can be loaded.
    """
    models: dict[str, list[Handle]] = {}
    for choice in options.models:
        handle = _handle(choice, options)
        models.setdefault(choice.name or handle.spec.name, []).append(handle)
    routes = router(
        models,
        policy=options.policy,
        limits=options.limits,
        api_key=options.api_key,
        drain=drain,
    )
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type"),
    )
    return Starlette(
        routes=[Mount("/", routes)],
        middleware=[cors] if options.cors_origins else [],
        exception_handlers={HTTPException: _answer},
        lifespan=lifespan(models),
    )


async def _answer(_request: Request, error: Exception) -> Response:
    """Answer what no route takes, such as a path with a line break in it, in the same form."""
    return problem_of(error).response()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; connections queue from now on.

    Args:
        host: An address or a name of this machine.
        port: 0 for a free one.

    Raises:
        InvalidConfig: It cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as exc:
        raise InvalidConfig(f"cannot listen on {host}:{port}: {exc}; choose another") from exc
    listener.set_inheritable(True)
    return listener


def serve(options: ServerOptions, listener: socket.socket) -> None:
    """Serve in this process until SIGTERM or SIGINT; running requests are finished first.

    Args:
        options: What to serve, and how.
        listener: From `listen`.

    Raises:
        InvalidConfig: An option that cannot work.
        InvalidModelSource: A model source is nothing that can be loaded.
    """
    drain = Drain()
    config = uvicorn.Config(
        application(options, drain),
        http=punctual_protocol(options.head_timeout),
        ws="none",
        lifespan="on",
        log_level=options.log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = _DrainingServer(config, drain, grace=options.grace)
    config.load()
    # A full collection over all that was imported would hold the event loop for tens of ms.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])


class _DrainingServer(uvicorn.Server):
    """Refuses new work at the first signal, and exits once nothing runs or at the second one."""

    def __init__(self, config: uvicorn.Config, drain: Drain, *, grace: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._grace = grace
        self._deadline = 0.0
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Note the signal; uvicorn would raise it again at the end, which is no exit code 0."""
        self._signals += 1
        self.force_exit = self._signals > 2  # noqa: PLR2004

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to stop."""
        if self._signals and not self._drain.is_stopping:
            self._drain.begin()
            self._deadline = time.monotonic() + self._grace
        if self._drain.is_stopping:
            late = time.monotonic() >= self._deadline
            self.should_exit = self._drain.running == 0 or late or self._signals > 1
        return await super().on_tick(counter)


def _handle(choice: ModelChoice, options: ServerOptions) -> Handle:
    spec = resolve_model(choice.source, modality=choice.modality)
    if spec.modality == "text":
        return TextEmbeddings(
            spec,
            tokenizer=choice.tokenizer,
            truncate=options.truncate,
            threads=options.threads,
            replicas=options.replicas,
            max_pending=options.max_pending,
            cache_dir=options.cache_dir,
            offline=options.offline,
        )
    return ImageEmbeddings(
        spec,
        source_policy=options.policy,
        threads=options.threads,
        replicas=options.replicas,
        max_pending=options.max_pending,
        cache_dir=options.cache_dir,
        offline=options.offline,
    )
