"""`aioembed serve` in its own process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

__all__ = ["Server", "served", "wait_ready"]


@dataclass(frozen=True)
class Server:
    """A server in its own process.

    Attributes:
        process: The supervisor.
        url: Its address.
        log: What it has written to stderr so far.
    """

    process: subprocess.Popen[str]
    url: str
    log: list[str]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def served(
    *arguments: object,
    program: tuple[str, ...] = ("-m", "aioembed"),
    address: str = r"http://\S+",
) -> Iterator[Server]:
    """Run `aioembed serve` on a free port; stopped at the end at the latest."""
    command = [sys.executable, *program, "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    reading: threading.Thread | None = None
    try:
        assert process.stderr is not None
        said: list[str] = []
        found = next(_addresses(process.stderr, said, address), None)
        assert found, "".join(said)
        reading = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reading.start()
        yield Server(process, found, said)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)
        if reading is not None:
            reading.join(60)
        if process.stderr is not None:
            process.stderr.close()


def _addresses(lines: Iterable[str], said: list[str], address: str) -> Iterator[str]:
    for line in lines:
        said.append(line)
        if match := re.search(f"serving on ({address})", line):
            yield match[1]


def wait_ready(url: str) -> None:
    """Follow the server's stream of states until it is ready."""
    with httpx.stream("GET", f"{url}/v1/state/stream", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and '"is_ready":true,"is_stopping"' in line:
                return
    pytest.fail("the stream ended before the server was ready")
