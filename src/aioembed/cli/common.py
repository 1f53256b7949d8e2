"""What the commands share: exit codes, errors in one line, options, results, tables."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from aioembed import SourcePolicy
from aioembed.errors import (
    AioembedError,
    BrokenInstallation,
    DownloadControlError,
    IncompatibleSpaces,
    IndexFileError,
    InvalidConfig,
    InvalidUserInput,
    MissingExtra,
    ResourceError,
)
from aioembed.models import EFFICIENTNET_LITE0, MODELS

from . import ExitCode

__all__ = [
    "DEFAULT_MODEL",
    "EXIT_CODE_HELP",
    "DebugOption",
    "ImagesArgument",
    "IndexModelOption",
    "ListingFormat",
    "MaxPixelsOption",
    "ModelOption",
    "OutputOption",
    "PreprocessingOption",
    "TextModelOption",
    "ThreadsOption",
    "base_names",
    "check_output",
    "complete_models",
    "complete_paths",
    "error_record",
    "exit_code_of",
    "guarded",
    "image_policy",
    "render_table",
    "report_error",
    "result_writer",
    "shorten_middle",
    "to_csv",
    "to_json",
    "unwritable",
    "usage_error",
    "warn",
    "write_result",
]


EXIT_CODE_HELP = (
    "Exit codes: 0 done; 1 some or all inputs failed, the others' results were written; "
    "2 wrong usage; 3 the model is at fault; 4 the model could not be fetched; "
    "5 the results could not be written; 6 the installation is at fault; "
    "7 the index is at fault; "
    "130 interrupted; 141 the reader of the results went away."
)

_CODES = MappingProxyType(
    {
        InvalidConfig: ExitCode.USAGE,
        InvalidUserInput: ExitCode.INPUT,
        IncompatibleSpaces: ExitCode.INDEX,
        IndexFileError: ExitCode.INDEX,
        ResourceError: ExitCode.DOWNLOAD,
        DownloadControlError: ExitCode.DOWNLOAD,
        MissingExtra: ExitCode.INSTALL,
        BrokenInstallation: ExitCode.INSTALL,
    }
)


def exit_code_of(error: AioembedError) -> ExitCode:
    """Return an error's exit code."""
    codes = (code for family, code in _CODES.items() if isinstance(error, family))
    return next(codes, ExitCode.MODEL)


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Run a command's body; turn its errors into a line on stderr and an exit code.

    Args:
        debug: Show tracebacks.

    Raises:
        typer.Exit: In place of an `AioembedError`, an interrupt or a broken pipe.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except AioembedError as error:
        report_error(error, debug=debug)
        raise typer.Exit(exit_code_of(error)) from error
    except BrokenPipeError as exc:
        discard_stdout()
        raise typer.Exit(ExitCode.CLOSED_PIPE) from exc
    except KeyboardInterrupt as exc:
        warn("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from exc


def report_error(error: AioembedError, *, name: str = "", debug: bool = False) -> None:
    """Say on stderr, in one line, what failed.

    Args:
        error: What was raised.
        name: The input it belongs to, where the message may not name it.
        debug: Show the traceback before the line.
    """
    if debug:
        traceback.print_exception(error)
    message = " ".join(_in_words_of_the_command(error).split())
    if name and name not in message:
        message = f"{name}: {message}"
    typer.echo(f"aioembed: error: {message}", err=True)


_OPTIONS_OF_RULES = {"max_pixels": "allow more with --max-pixels"}


def _in_words_of_the_command(error: AioembedError) -> str:
    """Return an error's message; of a limit, with the option that changes it, if one does."""
    if not isinstance(error, InvalidUserInput) or error.rule is None:
        return str(error)
    remedy = _OPTIONS_OF_RULES.get(error.rule, "")
    problem = error.problem.replace("the source policy's", "the")
    return f"{problem}: {remedy}" if remedy else problem


def image_policy(max_pixels: int | None = None) -> SourcePolicy:
    """Return what the commands accept as images: all of the user's own, through their proxies."""
    policy = SourcePolicy.trusted().allow(environment_proxies=True)
    return policy if max_pixels is None else policy.allow(max_pixels=max_pixels)


def warn(message: str) -> None:
    """Say something on stderr, in one line."""
    typer.echo(f"aioembed: {message}", err=True)


def usage_error(message: str) -> typer.Exit:
    """Say on stderr how the command should be called, and return the exit to raise."""
    warn(f"error: {message}")
    return typer.Exit(ExitCode.USAGE)


DEFAULT_MODEL = EFFICIENTNET_LITE0.name


def complete_models(incomplete: str) -> list[str]:
    """Return the named models, or else the files, that begin with what was typed."""
    return [name for name in MODELS if name.startswith(incomplete)] or complete_paths(incomplete)


def complete_paths(incomplete: str) -> list[str]:
    """Return the files and folders that begin with what was typed, for a shell's completion."""
    found = sorted(glob.glob(f"{glob.escape(incomplete)}*"))  # noqa: PTH207  # keeps ./ and ~
    return [f"{path}/" if os.path.isdir(path) else path for path in found]  # noqa: PTH112


ImagesArgument = typer.Argument(
    metavar="IMAGE",
    help="Paths, folders, https:, http:, file: or data: URIs; - reads one image from stdin.",
    show_default=False,
    autocompletion=complete_paths,
)
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A name from `aioembed models`, the path of a .pte file, or its URL.",
        autocompletion=complete_models,
    ),
]
IndexModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="As for `embed`; by default the one that the index was made with.",
        autocompletion=complete_models,
        show_default=False,
    ),
]
TextModelOption = Annotated[
    str | None,
    typer.Option(
        "--text-model",
        metavar="MODEL",
        help="Finds the pictures by words; the index remembers it.",
        autocompletion=complete_models,
        show_default=False,
    ),
]
PreprocessingOption = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        metavar="rne|rne-0.10.6|clip|imagenet|FILE.json",
        help="Preprocessing of the images, if the model file does not state it.",
        show_default=False,
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        help="Most pixels of one image, by default 300 million; each takes 4 bytes of memory.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=256,
        metavar="N",
        help="Threads to compute with; by default one per CPU that this process may use.",
        show_default=False,
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")]


OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the results there instead of to stdout.",
        autocompletion=complete_paths,
        show_default=False,
    ),
]


def check_output(
    output: Path | None, *, binary: bool = False, inputs: Iterable[object] = ()
) -> None:
    """Refuse an output that cannot work, before any work is done.

    Args:
        output: The file, or None for stdout.
        binary: Whether what will be written is not text.
        inputs: What is read, among it paths; none of those may be the output.

    Raises:
        typer.Exit: The output is closed, is a terminal for binary results, is one of the inputs,
            or no file can be made there.
    """
    if output is None:
        if sys.stdout is None:
            warn("error: stdout is closed: the results have nowhere to go; use --output FILE")
            raise typer.Exit(ExitCode.OUTPUT)
        if binary and sys.stdout.isatty():
            raise usage_error("these results are binary: use --output FILE, or redirect stdout")
        return
    if output.is_dir() or not output.parent.is_dir() or not _writable(output):
        raise unwritable(output, "no file can be written there")
    if output.exists() and any(_is_same(output, one) for one in inputs if isinstance(one, Path)):
        raise unwritable(output, "it is one of the inputs")


def write_result(result: bytes, output: Path | None) -> None:
    """Write a complete result.

    Args:
        result: All of it.
        output: The file, or None for stdout.

    Raises:
        typer.Exit: They cannot be written.
        BrokenPipeError: The reader of stdout went away.
    """
    with result_writer(output) as write:
        write(result)


@contextmanager
def result_writer(output: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Return what writes results as they come.

    A file gets its name when all of it is written: until then it is NAME.part.

    Args:
        output: The file, or None for stdout.

    Raises:
        typer.Exit: They cannot be written.
        BrokenPipeError: The reader of stdout went away.
    """
    check_output(output)
    try:
        if output is None:
            sys.stdout.flush()
            yield _write_to_stdout
            sys.stdout.buffer.flush()
        elif output.exists() and not output.is_file():  # a device, a pipe
            with output.open("wb") as file:
                yield partial(_write_to, file)
        else:
            unfinished = output.with_name(f"{output.name}.part")
            with _as_write_failed():
                file = unfinished.open("wb")
            with file:
                yield partial(_write_to, file)
            with _as_write_failed():
                unfinished.replace(output)
    except _WriteFailed as exc:
        if output is None:
            discard_stdout()
        raise unwritable(output or Path("stdout"), str(exc)) from exc


class _WriteFailed(Exception):
    """Results cannot be written; its text is the system's reason."""


def _write_to_stdout(part: bytes) -> None:
    _write_to(sys.stdout.buffer, part)


def _write_to(file: BinaryIO, part: bytes) -> None:
    with _as_write_failed():
        file.write(part)
        file.flush()


@contextmanager
def _as_write_failed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _WriteFailed(exc.strerror or str(exc)) from exc


def discard_stdout() -> None:
    """Discard what is still buffered, so that writing it does not fail again at the exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_same(output: Path, other: Path) -> bool:
    try:
        return output.samefile(other)
    except (OSError, ValueError):
        return False


def _writable(output: Path) -> bool:
    return os.access(output if output.exists() else output.parent, os.W_OK)


def unwritable(output: Path, reason: str) -> typer.Exit:
    """Say on stderr that results cannot be written, and return the exit to raise."""
    warn(f"error: cannot write {str(output)!r}: {reason}; give another path")
    return typer.Exit(ExitCode.OUTPUT)


class ListingFormat(StrEnum):
    """What listings can be written as."""

    TABLE = "table"
    JSON = "json"


def error_record(error: AioembedError) -> dict[str, Any]:
    """Return an error for JSON: its type, its code and its message."""
    return {"type": type(error).__name__, "code": error.code, "message": str(error)}


def to_json(document: object) -> bytes:
    """Return a document as JSON in UTF-8 with a line end."""
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


def to_csv(rows: list[list[Any]]) -> bytes:
    """Return rows as CSV (RFC 4180 quoting) in UTF-8 with bare line feeds."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


_UNBOUNDED = 100_000
_TRAILING_BLANKS = re.compile(r"[ ]+((?:\x1b\[[\d;]*m)*)$")


def render_table(table: Table, *, wrap: bool = False, plain: bool = False) -> bytes:
    """Return a table as UTF-8 text, coloured where stdout is a terminal.

    Args:
        table: What to render.
        wrap: Fold its cells where the terminal is narrow; otherwise its lines are as long as they
            need to be.
        plain: Never colour it.
    """
    stdout = Console(file=sys.stdout)
    text = io.StringIO()
    console = Console(
        file=text,
        width=stdout.width,
        no_color=plain,
        force_terminal=stdout.is_terminal and not plain,
    )
    if not wrap:
        unbounded = console.options.update(max_width=_UNBOUNDED)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)
    lines = (_TRAILING_BLANKS.sub(r"\1", line) for line in text.getvalue().splitlines())
    return "".join(f"{line}\n" for line in lines).encode()


def base_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of paths and URLs, or all of each where those would be ambiguous."""
    last = [name if name.startswith("data:") else name.rpartition("/")[2] for name in names]
    return last if len(set(last)) == len(set(names)) and all(last) else list(names)


def shorten_middle(text: str, width: int) -> str:
    """Return `text` in at most `width` characters, its middle left out where it is longer."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
