"""`aioembed serve`: models behind HTTP."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aioembed.errors import InvalidConfig, MissingExtra
from aioembed.images import SourcePolicy
from aioembed.models import Modality
from aioembed.runtime import available_cpus

from .common import (
    DEFAULT_MODEL,
    DebugOption,
    PreprocessingOption,
    ThreadsOption,
    complete_models,
    complete_paths,
    guarded,
    warn,
)

if TYPE_CHECKING:
    from .serving import ModelChoice

__all__ = ["serve"]

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")
_MEBI = 1024 * 1024
LogLevel = Literal["critical", "error", "warning", "info", "debug"]
_KEY_VARIABLE = "AIOEMBED_API_KEY"

_ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="[NAME=]MODEL",
        help="A name from `aioembed models`, the path of a .pte file, or its URL; may be repeated. "
        "NAME is what clients call it. By default efficientnet-lite0.",
        autocompletion=complete_models,
        show_default=False,
    ),
]
_TextModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text-model",
        metavar="[NAME=]MODEL",
        help="As --model, for the path or URL of a text model; NAME may be an image model's.",
        autocompletion=complete_models,
        show_default=False,
    ),
]


def serve(
    models: _ModelsOption = None,
    text_models: _TextModelsOption = None,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="tokenizer.json of text models that have none.",
            autocompletion=complete_paths,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    uds: Annotated[
        Path | None, typer.Option(help="A Unix socket to listen on, in place of a port.")
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Where a proxy serves this, such as /embed.")
    ] = "",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_KEY_VARIABLE,
            help="Required from clients as a bearer token; better given by the environment, where "
            "several are separated by blanks. May be repeated.",
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, one on each line.", autocompletion=complete_paths),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    preprocessing: PreprocessingOption = None,
    threads: ThreadsOption = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Copies of each model, of one thread each.")
    ] = 1,
    max_memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Of the models that are loaded at the same time, in each process: models are "
            "loaded when asked for, the least recently used sleep. All are loaded where it is not "
            "given.",
        ),
    ] = None,
    preload: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --max-memory: load it at the start; may repeat."),
    ] = None,
    idle_timeout: Annotated[
        str,
        typer.Option(
            metavar="SECONDS",
            help="Unload a model that was not used for so long, until the next request; `never`, "
            "or `auto`: 300 for models that wake in milliseconds.",
        ),
    ] = "auto",
    max_pending: Annotated[
        int, typer.Option(min=1, help="Most embeddings that wait or run, for each model.")
    ] = 1024,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="Largest body.")] = 16,
    max_bodies: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="All bodies that are held, in each process.")
    ] = 256,
    max_connections: Annotated[
        int, typer.Option(min=1, help="In each process; what is beyond waits to be taken.")
    ] = 1024,
    max_inputs: Annotated[int, typer.Option(min=1, help="Most inputs in one request.")] = 256,
    request_timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS")] = 120.0,
    body_timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="For a request's body to arrive.")
    ] = 30.0,
    head_timeout: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=60,
            metavar="SECONDS",
            help="For a request's head to arrive, and for a connection to be idle.",
        ),
    ] = 10.0,
    grace: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="For running requests, when stopped."),
    ] = 30.0,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate", help="Cut texts that are too long, where a request says nothing."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests with fields that are not known.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="End when a model cannot be loaded.")
    ] = False,
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
    log_level: Annotated[
        LogLevel, typer.Option(help="Of the log on stderr, which has the models' states.")
    ] = "info",
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log every request, with its id and duration.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Serve embeddings over HTTP, as OpenAI does, with a page at /.

    The port opens before the models are loaded; /readyz reports their progress. SIGTERM lets
    running requests finish, takes no new ones, and ends with exit code 0.
    """
    with guarded(debug):
        _check_installed()
        from .serving import Listening, ServerOptions, check  # noqa: PLC0415  # an extra
        from .serving import serve as serve_until_stopped  # noqa: PLC0415

        options = ServerOptions(
            models=tuple(_choices(models or [], text_models or [], tokenizer)),
            preprocessing=preprocessing,
            api_keys=_keys(api_key, api_key_file),
            policy=_policy(allow_host, allow_private),
            limits={
                "max_body_bytes": max_body * _MEBI,
                "max_total_body_bytes": max(max_bodies, max_body) * _MEBI,
                "max_inputs": max_inputs,
                "body_timeout": body_timeout,
                "request_timeout": request_timeout,
            },
            cors_origins=_origins(cors_origin),
            max_memory=max_memory and max_memory * _MEBI,
            preload=tuple(preload or ()),
            idle_timeout=_idle_timeout(idle_timeout),
            max_pending=max_pending,
            threads=threads or (_threads(workers) if replicas == 1 else None),
            replicas=replicas,
            truncates=truncate,
            cache_dir=cache_dir,
            offline=offline or None,
            root_path=root_path,
            is_strict=strict,
            fails_fast=fail_fast,
            log_level=log_level,
            logs_access=access_log,
        )
        listening = Listening(
            host=host,
            port=port,
            uds=uds,
            workers=workers,
            max_connections=max_connections,
            head_timeout=head_timeout,
            grace=grace,
        )
        check(options)
        code = serve_until_stopped(
            options, listening, lambda address: warn(f"serving on {address}")
        )
        raise typer.Exit(code)


def _policy(allow_hosts: list[str] | None, allow_private: bool) -> SourcePolicy:
    policy = SourcePolicy.untrusted()
    if allow_hosts:
        policy = policy.allow(allow_hosts=allow_hosts)
    if allow_private:
        policy = policy.allow(private_addresses=True, ports=None)
    return policy


def _origins(origins: list[str] | None) -> tuple[str, ...]:
    for origin in origins or ():
        if not _ORIGIN.fullmatch(origin):
            raise InvalidConfig(
                f"{origin!r} is not an origin: give scheme, host and port as browsers send them, "
                "without a path, such as https://example.org; * is every origin"
            )
    return tuple(origins or ())


def _keys(keys: list[str] | None, file: Path | None) -> tuple[str, ...] | None:
    """Return the keys of which clients must send one; None where none is required.

    Raises:
        InvalidConfig: An empty one, which would let everyone in, or a file that has none.
    """
    if not keys and _KEY_VARIABLE in os.environ:  # typer ignores an empty one
        raise InvalidConfig(f"{_KEY_VARIABLE} is empty: set it to a key, or unset it")
    found = list(keys or ())
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidConfig(f"cannot read the keys in {file}: {exc}") from exc
        read = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not read:
            raise InvalidConfig(f"{file} has no key: write one on each line")
        found += read
    if any(not key.strip() for key in found):
        raise InvalidConfig("an API key is empty: give one, or leave the option out")
    return tuple(found) or None


def _idle_timeout(text: str) -> float | Literal["auto"] | None:
    if text == "auto":
        return "auto"
    if text == "never":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidConfig(
            f"--idle-timeout is a number of seconds above 0, `auto` or `never`, not {text}"
        )
    return seconds


def _choices(models: list[str], text_models: list[str], tokenizer: str | None) -> list[ModelChoice]:
    from .serving import ModelChoice  # noqa: PLC0415  # an extra

    given: list[tuple[str, Modality]] = [(text, "image") for text in models]
    given += [(text, "text") for text in text_models]
    choices = []
    for text, modality in given or [(DEFAULT_MODEL, "image")]:
        named = _NAMED.fullmatch(text)
        choices.append(
            ModelChoice(
                source=named[2] if named else text,
                modality=modality,
                name=named[1] if named else None,
                tokenizer=tokenizer,
            )
        )
    return choices


def _threads(workers: int) -> int | None:
    """The workers share the CPUs."""
    return max(1, available_cpus() // workers) if workers > 1 else None


def _check_installed() -> None:
    for package in ("granian", "fastapi", "prometheus_client", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "server")
