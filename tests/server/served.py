"""`aioembed serve` in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

__all__ = ["Server", "served", "wait_ready"]


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def served(*arguments: object, program: tuple[str, ...] = ("-m", "aioembed")) -> Iterator[Server]:
    """Run `aioembed serve` on a free port; stopped at the end at the latest."""
    command = [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        match = re.search(r"http://\S+", said)
        assert match, said + process.stderr.read()
        yield Server(process, match[0])
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def wait_ready(url: str) -> None:
    """Follow the server's stream of states until it is ready."""
    with httpx.stream("GET", f"{url}/v1/state/stream", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and '"is_ready":true,"is_stopping"' in line:
                return
    pytest.fail("the stream ended before the server was ready")
