"""A Redis for examples and tests, on a free loopback port, with its own folder."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004
from redis.retry import Retry


class LocalRedis:
    """A `redis-server` process that keeps every write in an append-only file.

    Args:
        folder: Where it stores its data; a server started there again has the same data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._port)]
        command += ["--dir", str(self._folder), "--appendonly", "yes", "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        away = (BusyLoadingError, ConnectionError, TimeoutError)
        patience = Retry(ConstantBackoff(0.02), 500, supported_errors=away)
        with redis.Redis.from_url(self.url, retry=patience) as client:
            client.ping()

    def stop(self) -> None:
        """Stop it with SIGTERM, as a shutdown of the machine does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it with SIGKILL, which it cannot handle."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


@contextmanager
def local_redis(folder: Path) -> Iterator[LocalRedis]:
    """Run a Redis server inside a `with` block."""
    server = LocalRedis(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
