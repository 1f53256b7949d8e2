"""Thumbnails by path, made by another process, so that decoding takes no CPU from the keys."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from indexing import giving_way

KEPT = 500


class Thumbnails:
    """Keeps the latest ones. `aclose` ends the process, which starts with the first."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, bytes] = OrderedDict()
        self._asking = asyncio.Lock()
        self._process: Process | None = None

    async def get(self, paths: Sequence[str]) -> list[bytes]:
        """Return pixels for each path, none for a picture that cannot be read."""
        async with self._asking:
            missing = {path for path in paths if path not in self._made}
            if missing:
                await self._make(missing)
            found = [self._made.get(path, b"") for path in paths]
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return found

    async def aclose(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def _make(self, missing: set[str]) -> None:
        """Ask for all at once. Answers to a search that was given up are kept, too."""
        process = self._process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(f"{json.dumps(path)}\n" for path in missing).encode())
        while missing and (line := await process.stdout.readline()):
            made = json.loads(line)
            self._made[made["path"]] = bytes.fromhex(made["pixels"])
            missing.discard(made["path"])
        if missing:  # it has ended; the next search starts another one
            await process.wait()

    async def _running(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        script = str(Path(__file__).with_name("thumbnailer.py"))
        command = [*giving_way(), sys.executable, script]
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
