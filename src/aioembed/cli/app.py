"""The command `aioembed` and its subcommands."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated

import typer

from aioembed import __version__

from .common import EXIT_CODE_HELP
from .demo import demo
from .describe import describe
from .doctor import doctor
from .embed import embed, similarity
from .export import export
from .index import duplicates, index, search
from .models import cache_app, download, models
from .serve import serve
from .verify import verify

__all__ = ["app"]

app = typer.Typer(
    name="aioembed",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODE_HELP,
)


class LogLevel(StrEnum):
    """From which level on the log is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001  # its callback has shown it
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Show the log on stderr, from this level on.", show_default=False),
    ] = None,
) -> None:
    """Embed images on this machine's CPU; results on stdout, everything else on stderr."""
    if log_level is not None:
        logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")


for _command in (
    demo,
    embed,
    similarity,
    index,
    search,
    duplicates,
    models,
    download,
    export,
    describe,
    verify,
    serve,
    doctor,
):
    app.command()(_command)
app.add_typer(cache_app, name="cache")
