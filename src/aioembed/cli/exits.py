"""The exit codes: what a script can tell from one."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType

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

__all__ = ["EXIT_CODE_HELP", "ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    """All was done."""
    INPUT = 1
    """Some inputs, or all, could not be embedded; the results of the others were written."""
    USAGE = 2
    """The command was called in a wrong way."""
    MODEL = 3
    """The model is unknown, unreadable, damaged, or the runtime refused it."""
    DOWNLOAD = 4
    """The model's files could not be fetched or kept."""
    OUTPUT = 5
    """The results could not be written."""
    INSTALL = 6
    """An extra is missing, or `doctor` found something broken."""
    INDEX = 7
    """The index file is missing, locked, damaged, or of another model."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CLOSED_PIPE = 141
    """The reader of the results went away."""


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
    """Return the exit code that tells of an error."""
    codes = (code for family, code in _CODES.items() if isinstance(error, family))
    return next(codes, ExitCode.MODEL)
