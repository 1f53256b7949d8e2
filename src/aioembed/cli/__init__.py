"""The command line. It needs the extra `cli`; `main` says so where that is missing."""

from __future__ import annotations

import sys

from .exits import ExitCode

__all__ = ["ExitCode", "main"]

_EXTRA = frozenset({"typer", "rich"})


def main() -> int:
    """Run the command `aioembed`.

    Returns:
        One of `ExitCode`. Most commands leave by `SystemExit` with such a code instead.
    """
    try:
        from .app import app  # noqa: PLC0415  # the extra is optional
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            f"aioembed: error: the command line needs {exc.name}, which is not installed: "
            'pip install "aioembed[cli]"\n'
        )
        return ExitCode.INSTALL
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    app(prog_name="aioembed")
    return ExitCode.OK
