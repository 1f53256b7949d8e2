"""`aioembed serve`: models behind HTTP."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aioembed.errors import InvalidConfig, MissingExtra
from aioembed.images import SourcePolicy
from aioembed.runtime import available_cpus

from .common import DebugOption, ThreadsOption, guarded, warn

if TYPE_CHECKING:
    from aioembed.integrations.starlette.serving import ModelChoice, ServerOptions

__all__ = ["serve"]

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
_MEBI = 1024 * 1024
_KEY_VARIABLE = "AIOEMBED_API_KEY"

_ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="[NAME=]MODEL",
        help="A name from `aioembed models`, the path of a .pte file, or its URL; may be repeated. "
        "NAME is what clients call it. efficientnet-lite0 where none is given.",
        show_default=False,
    ),
]
_TextModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text-model",
        metavar="[NAME=]MODEL",
        help="As --model, for the path or URL of a text model; NAME may be an image model's.",
        show_default=False,
    ),
]


def serve(
    models: _ModelsOption = None,
    text_models: _TextModelsOption = None,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="tokenizer.json of text models that have none beside."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_KEY_VARIABLE,
            help="Wanted from clients as a bearer token; better given by the environment.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    threads: ThreadsOption = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Copies of each model, of one thread each.")
    ] = 1,
    max_pending: Annotated[
        int, typer.Option(min=1, help="Most embeddings that wait or run, for each model.")
    ] = 1024,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="Largest body.")] = 16,
    max_inputs: Annotated[int, typer.Option(min=1, help="Most inputs in one request.")] = 256,
    request_timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS")] = 120.0,
    head_timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="For a request's head to arrive.")
    ] = 10.0,
    grace: Annotated[
        float,
        typer.Option(min=0.001, metavar="SECONDS", help="For running requests, when stopped."),
    ] = 30.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Only fetch images from this host (*.example.org); may be repeated."),
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch images from private addresses too.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages of this origin call the server; may be repeated."),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of downloaded models.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    log_level: Annotated[str, typer.Option(help="critical, error, warning, info.")] = "warning",
    debug: DebugOption = False,
) -> None:
    """Serve embeddings over HTTP, as OpenAI does, with a page at /.

    The port opens at once; /readyz tells how far the models are. SIGTERM lets running requests
    finish, answers new ones with 503, and ends with exit code 0.
    """
    with guarded(debug):
        _check_installed()
        if api_key is None and _KEY_VARIABLE in os.environ:  # typer takes an empty one for none
            raise InvalidConfig(f"{_KEY_VARIABLE} is empty: set it to a key, or unset it for none")
        from aioembed.integrations.starlette import ServerLimits  # noqa: PLC0415  # an extra
        from aioembed.integrations.starlette.serving import ServerOptions  # noqa: PLC0415

        policy = SourcePolicy.untrusted()
        if allow_host:
            policy = policy.allow(allow_hosts=allow_host)
        if allow_private:
            policy = policy.allow(private_addresses=True, ports=None)
        options = ServerOptions(
            models=tuple(_choices(models or [], text_models or [], tokenizer)),
            api_key=api_key,
            policy=policy,
            limits=ServerLimits(
                max_body_bytes=max_body * _MEBI,
                max_inputs=max_inputs,
                request_timeout=request_timeout,
            ),
            cors_origins=tuple(cors_origin or ()),
            max_pending=max_pending,
            threads=threads or (_threads(workers) if replicas == 1 else None),
            replicas=replicas,
            cache_dir=cache_dir,
            offline=offline or None,
            head_timeout=head_timeout,
            grace=grace,
            log_level=log_level,
        )
        _run(options, host, port, workers)


def _run(options: ServerOptions, host: str, port: int, workers: int) -> None:
    from aioembed.integrations.starlette import serving  # noqa: PLC0415  # an extra
    from aioembed.integrations.starlette.workers import serve_with_workers  # noqa: PLC0415

    application = serving.application(options)  # what is wrong with the options is said here
    del application
    with serving.listen(host, port) as listener:
        address = f"[{host}]" if ":" in host else host
        warn(f"serving on http://{address}:{listener.getsockname()[1]}")
        if workers == 1:
            serving.serve(options, listener)
        else:
            serve_with_workers(options, listener, workers)


def _choices(models: list[str], text_models: list[str], tokenizer: str | None) -> list[ModelChoice]:
    from aioembed.integrations.starlette.serving import ModelChoice  # noqa: PLC0415  # an extra

    given = [(text, "image") for text in models] + [(text, "text") for text in text_models]
    choices = []
    for text, modality in given or [("efficientnet-lite0", "image")]:
        match = _NAMED.fullmatch(text)
        name, source = match.groups() if match else (None, text)
        choices.append(
            ModelChoice.model_validate(
                {"source": source, "modality": modality, "name": name, "tokenizer": tokenizer}
            )
        )
    return choices


def _threads(workers: int) -> int | None:
    """The workers share the CPUs."""
    return max(1, available_cpus() // workers) if workers > 1 else None


def _check_installed() -> None:
    for package in ("uvicorn", "httptools", "starlette", "sse_starlette", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "server")
