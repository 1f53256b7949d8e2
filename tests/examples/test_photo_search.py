"""Photo search, started in a terminal by the command that it documents."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import EXAMPLES

for _package in ("textual", "textual_image"):
    pytest.importorskip(_package)

from sample_images import fill

_CTRL_Q = b"\x11"
_SIZE = struct.pack("HHHH", 24, 80, 0, 0)


def test_the_documented_command_indexes_a_folder_and_ctrl_q_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    list(fill(folder, 3))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, _SIZE)
    command: list[str | Path] = [sys.executable, EXAMPLES / "photo_search.py", folder]
    command += ["--index", tmp_path / "photos.db"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    with process, os.fdopen(ours, "r+b", buffering=0) as terminal:
        try:
            shown = b""
            while b"photos: 3 of 3" not in shown:
                shown += terminal.read(1 << 16)
            terminal.write(_CTRL_Q)
            with suppress(OSError):  # the other side of the terminal was closed
                while True:
                    shown += terminal.read(1 << 16)
            assert process.wait(60) == 0, shown.decode(errors="replace")
        finally:
            process.kill()
