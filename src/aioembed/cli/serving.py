"""A complete server: granian's processes around the routes, stopping without losing a request."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio

from aioembed.errors import AioembedError, InvalidConfig, shorten
from aioembed.image import ImageEmbeddings
from aioembed.images import SourcePolicy
from aioembed.models import Modality, resolve_model
from aioembed.options import IdleTimeout, Queueing, Threads
from aioembed.text import TextEmbeddings

from .common import exit_code_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastapi import FastAPI

    from aioembed.integrations.fastapi import Metrics

__all__ = ["Listening", "ModelChoice", "ServerOptions", "check", "serve"]

_SPARE_DESCRIPTORS = 64
_LEAST_CONNECTIONS = 16
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """One model to serve.

    Attributes:
        source: A registered name, a URL or a path.
        modality: What it embeds, where the source does not say.
        name: That clients give; the model's own where None.
        tokenizer: Of a text model without one in its folder.
    """

    source: str
    modality: Modality
    name: str | None
    tokenizer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything that a worker process needs to know.

    Attributes:
        models: At least one.
        preprocessing: As for `ImageEmbeddings`, of all image models.
        api_keys: Of which clients must send one; None requires none.
        policy: What images may be and where they may come from.
        limits: As for `ServerLimits`.
        cors_origins: Web pages of other origins that may call; none by default.
        max_memory: Bytes that the loaded models of each worker may take; None loads all models.
        preload: Names of models that are loaded at the start, where `max_memory` is given.
        idle_timeout: As for `ImageEmbeddings`.
        max_pending: Most embeddings that may wait or run, for each model.
        threads: As for `ImageEmbeddings`, in each worker.
        replicas: As for `Threads`, in each worker.
        truncates: Whether texts that are too long are cut, where a request does not say.
        cache_dir: As for `ImageEmbeddings`.
        offline: As for `ImageEmbeddings`.
        root_path: Where a proxy serves it.
        is_strict: Whether fields that are not known are refused.
        fails_fast: Whether a model that cannot be loaded ends the server.
        log_level: Of the server's log.
        logs_access: Whether the log has a line for each request.
    """

    models: tuple[ModelChoice, ...]
    preprocessing: str | None
    api_keys: tuple[str, ...] | None
    policy: SourcePolicy
    limits: Mapping[str, float]
    cors_origins: tuple[str, ...]
    max_memory: int | None
    preload: tuple[str, ...]
    idle_timeout: IdleTimeout
    max_pending: int
    threads: int | None
    replicas: int
    truncates: bool
    cache_dir: Path | None
    offline: bool | None
    root_path: str
    is_strict: bool
    fails_fast: bool
    log_level: str
    logs_access: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how connections are taken.

    Attributes:
        host: An address or a name of this machine.
        port: 0 for a free one.
        uds: The path of a Unix socket, in place of both.
        workers: How many processes.
        max_connections: Most of them, in each process; what is beyond waits to be taken.
        head_timeout: Seconds that a request's head may take, and a connection may be idle.
        grace: Seconds that running requests may take when the server stops.
    """

    host: str
    port: int
    uds: Path | None
    workers: int
    max_connections: int
    head_timeout: float
    grace: float

    @property
    def address(self) -> str:
        """For people and clients."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def check(options: ServerOptions) -> None:
    """Say what is wrong with options before any process is started.

    Raises:
        InvalidConfig: An option that cannot work.
        InvalidModelSource: A model source is nothing that can be loaded.
    """
    names = _models(options, None)
    for name in options.preload:
        if options.max_memory is None:
            raise InvalidConfig("--preload goes with --max-memory: without it all are loaded")
        if name not in names:
            known = ", ".join(names)
            raise InvalidConfig(f"--preload {shorten(name)}: the models are named {known}")


def free_port(listening: Listening) -> Listening:
    """Return where to listen, with a free port in place of 0.

    Raises:
        InvalidConfig: The address or the port cannot be had.
    """
    if listening.uds is not None:
        return listening
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    try:
        with socket.create_server((listening.host, listening.port), family=family) as found:
            return replace(listening, port=found.getsockname()[1])
    except (OSError, OverflowError) as exc:
        raise InvalidConfig(
            f"cannot listen on {listening.host}:{listening.port}: {exc}; choose another"
        ) from exc


def serve(options: ServerOptions, listening: Listening, started: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; running requests are finished first.

    A process supervises the workers: it starts another where one dies, and they end when it does.

    Args:
        options: What to serve, and how.
        listening: Where.
        started: Called with the address once connections are taken.

    Returns:
        The exit code.

    Raises:
        InvalidConfig: The address cannot be had.
    """
    from granian.constants import HTTPModes, Interfaces, Loops  # noqa: PLC0415  # an extra
    from granian.http import HTTP1Settings  # noqa: PLC0415
    from granian.log import LogLevels  # noqa: PLC0415
    from granian.server import Server  # noqa: PLC0415

    listening = free_port(listening)
    # A forked worker would hold the writing end of its own lifeline, and threads' locks.
    multiprocessing.set_start_method("spawn", force=True)
    # `python -c`, which starts a worker, would import from the current folder first.
    os.environ["PYTHONSAFEPATH"] = "1"
    # glibc would keep what requests of megabytes leave behind in up to eight arenas for each CPU.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    lifeline, end = multiprocessing.Pipe(duplex=False)
    failure: Synchronized[int] = multiprocessing.Value("i", 0)
    loader = _Application(options, lifeline, failure)
    server = Server(
        "aioembed",
        address=listening.host,
        port=listening.port,
        uds=listening.uds,
        interface=Interfaces.ASGI,
        loop=Loops.auto,
        http=HTTPModes.http1,
        websockets=False,
        workers=listening.workers,
        backlog=2048,
        backpressure=_connections(listening.max_connections),
        http1_settings=HTTP1Settings(
            header_read_timeout=min(60_000, max(1, round(listening.head_timeout * 1000))),
            max_buffer_size=1 << 16,
        ),
        log_level=LogLevels(_log_level_of_granian(options)),
        log_dictconfig=_logging(options),
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=max(1, round(listening.grace)),
    )

    def starting() -> None:
        _take_signals(end)
        threading.Thread(target=_say_when_open, args=(listening, started), daemon=True).start()

    server.on_startup(starting)
    with ExitStack() as stack:
        if listening.workers > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aioembed-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        if listening.uds is not None:
            stack.callback(listening.uds.unlink, missing_ok=True)
        try:
            server.serve(target_loader=loader, wrap_loader=False)
        except SystemExit as exc:
            return failure.value or int(exc.code or 0)
    return failure.value


class _Application:
    """What makes a worker's application, in the worker: it is sent there."""

    def __init__(
        self, options: ServerOptions, lifeline: Connection, failure: Synchronized[int]
    ) -> None:
        self._options = options
        self._lifeline = lifeline
        self._failure = failure

    def __call__(self) -> FastAPI:
        """Return the application."""
        from fastapi.middleware.cors import CORSMiddleware  # noqa: PLC0415  # an extra

        from aioembed.integrations import fastapi  # noqa: PLC0415

        options = self._options
        metrics = fastapi.Metrics()
        models = fastapi.Models(
            lambda: _models(options, metrics),
            max_memory=options.max_memory,
            preload=options.preload,
        )
        made = fastapi.app(
            models,
            policy=options.policy,
            limits=fastapi.ServerLimits.model_validate(options.limits),
            api_key=options.api_keys,
            strict=options.is_strict,
            metrics=metrics,
            root_path=options.root_path,
        )
        if options.cors_origins:
            made.add_middleware(
                CORSMiddleware,
                allow_origins=options.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),  # OpenAI's clients send a dozen
                expose_headers=("X-Request-ID", "Retry-After"),
            )

        @asynccontextmanager
        async def living(_app: object) -> AsyncGenerator[None, None]:
            failed = self._fail if options.fails_fast else None
            async with models.running(failed=failed), anyio.create_task_group() as group:
                group.start_soon(self._watch_lifeline, made)
                yield
                group.cancel_scope.cancel()

        made.router.lifespan_context = living
        return made

    async def _watch_lifeline(self, made: FastAPI) -> None:
        """Stop when the supervisor stops or has died."""
        from aioembed.integrations.fastapi import stop  # noqa: PLC0415

        await anyio.wait_readable(self._lifeline.fileno())
        stop(made)
        os.kill(os.getpid(), signal.SIGTERM)

    def _fail(self, error: AioembedError) -> None:
        self._failure.value = int(exit_code_of(error))
        os.kill(os.getppid(), signal.SIGTERM)


def _take_signals(end: Connection) -> None:
    """At the first signal let the workers' streams end; at the second, end the workers."""
    granian_stops: Any = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if end.closed:
            for worker in multiprocessing.active_children():
                worker.kill()
        end.close()
        granian_stops(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _say_when_open(listening: Listening, started: Callable[[str], None]) -> None:
    """Wait until connections are taken."""
    while True:
        try:
            if listening.uds is not None:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(listening.uds))
            else:
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening.host, listening.host)  # noqa: S104
                socket.create_connection((host, listening.port), timeout=1).close()
        except OSError:
            time.sleep(_POLL_SECONDS)
        else:
            started(listening.address)
            return


def _connections(wanted: int) -> int:
    """Return how many connections the descriptors of a process are enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(_LEAST_CONNECTIONS, soft * 3 // 4 - _SPARE_DESCRIPTORS))


def _log_level_of_granian(options: ServerOptions) -> str:
    """At `info` granian logs its processes, which users of this command do not need."""
    return "warning" if options.log_level == "info" else options.log_level


def _logging(options: ServerOptions) -> dict[str, Any]:
    level = options.log_level.upper()
    access = "INFO" if options.logs_access else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "generic": {"format": "%(asctime)s %(levelname)s %(name)s %(process)d: %(message)s"}
        },
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "formatter": "generic",
                "stream": "ext://sys.stderr",
            }
        },
        "loggers": {
            "_granian": {
                "handlers": ["console"],
                "level": _log_level_of_granian(options).upper(),
                "propagate": False,
            },
            "aioembed": {"handlers": ["console"], "level": level, "propagate": False},
            "aioembed.access": {"level": access},
            "aioembed.runtime": {"level": "DEBUG" if level == "DEBUG" else "WARNING"},
        },
    }


def _models(options: ServerOptions, metrics: Metrics | None) -> dict[str, list[Any]]:
    models: dict[str, list[Any]] = {}
    for choice in options.models:
        handle = _handle(choice, options, metrics)
        models.setdefault(choice.name or handle.spec.name, []).append(handle)
    return models


def _handle(
    choice: ModelChoice, options: ServerOptions, metrics: Metrics | None
) -> ImageEmbeddings | TextEmbeddings:
    spec = resolve_model(choice.source, modality=choice.modality)
    name = choice.name or spec.name
    on_call = metrics.on_call(name, spec.modality) if metrics else None
    threads = Threads(inference=options.threads, replicas=options.replicas)
    queueing = Queueing(max_pending=options.max_pending)
    if spec.modality == "text":
        return TextEmbeddings(
            spec,
            tokenizer=choice.tokenizer,
            truncate="silent" if options.truncates else "error",
            threads=threads,
            queueing=queueing,
            cache_dir=options.cache_dir,
            offline=options.offline,
            idle_timeout=options.idle_timeout,
            on_call=on_call,
        )
    return ImageEmbeddings(
        spec,
        preprocessing=options.preprocessing,
        source_policy=options.policy,
        threads=threads,
        queueing=queueing,
        cache_dir=options.cache_dir,
        offline=options.offline,
        idle_timeout=options.idle_timeout,
        on_call=on_call,
    )
