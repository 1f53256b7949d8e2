"""Several processes behind one socket."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from .serving import ServerOptions, serve

__all__ = ["serve_with_workers"]

_logger = logging.getLogger("aioembed.server")

_LOOK_SECONDS = 0.2
_LEAST_LIFE = 1.0


def serve_with_workers(options: ServerOptions, listener: socket.socket, workers: int) -> None:
    """Serve in several processes until SIGTERM or SIGINT; one that dies is replaced.

    They share the cache folder, so that a model is downloaded once.

    Args:
        options: What each serves, and how.
        listener: From `listen`.
        workers: How many.
    """
    stopping = False

    def stop(_sig: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    handlers = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    processes = [_start(options, listener) for _ in range(workers)]
    try:
        while not stopping:
            wait([process.sentinel for process in processes], _LOOK_SECONDS)
            if not stopping:
                processes = [_alive(process, options, listener) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for sig, handler in handlers.items():
            signal.signal(sig, handler)


def _start(options: ServerOptions, listener: socket.socket) -> SpawnProcess:
    # multiprocessing starts `python -c`, which imports from the current folder otherwise
    os.environ["PYTHONSAFEPATH"] = "1"
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(options, listener))
    process.start()
    return process


def _alive(process: SpawnProcess, options: ServerOptions, listener: socket.socket) -> SpawnProcess:
    if process.is_alive():
        return process
    _logger.warning("worker %s ended with %s; starting another", process.pid, process.exitcode)
    time.sleep(_LEAST_LIFE)
    return _start(options, listener)
