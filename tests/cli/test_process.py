"""The command as a process: streams, pipes, signals, and installations without the extra."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from .conftest import RunProcess


def test_results_are_on_stdout_and_errors_on_stderr(
    run_process: RunProcess, picture: Path, tmp_path: Path
) -> None:
    done = run_process("embed", picture, tmp_path / "missing.png")
    assert done.returncode == 1
    assert [set(result) for result in json.loads(done.stdout)["results"]] == [
        {"input", "embedding"},
        {"input", "error"},
    ]
    assert done.stderr.decode().splitlines() == [
        line for line in done.stderr.decode().splitlines() if line.startswith("aioembed: ")
    ]


def test_a_reader_that_went_away_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "aioembed", "models"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def _hear_ctrl_c() -> None:
    """A shell's background jobs, and so what they start, ignore the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_it_with_130_and_no_traceback() -> None:
    """Interrupted while it waits for a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cat.png"
        command = [sys.executable, "-m", "aioembed", "embed", url]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509  # no other thread runs here
        ) as process:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(3) == b"GET"
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert stderr.decode() == "aioembed: interrupted\n"


_WITHOUT = """
import sys

tried = set()

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {packages}:
            tried.add(name)
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
"""


def _without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process in which some packages cannot be imported."""
    script = _WITHOUT.format(packages=packages) + code
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_without_the_extra_it_says_how_to_install_it() -> None:
    done = _without({"typer"}, "from aioembed.cli import main; sys.exit(main())")
    assert done.returncode == 6
    assert done.stdout == ""
    assert 'pip install "aioembed[cli]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_importing_the_library_needs_no_extra_and_tries_none() -> None:
    extras = {"typer", "tokenizers", "torch", "executorch", "transformers"}
    # httpx imports rich where it can.
    done = _without(extras | {"rich"}, "import aioembed; print(sorted(tried - {'rich'}))")
    assert done.stdout == "[]\n", done.stderr
