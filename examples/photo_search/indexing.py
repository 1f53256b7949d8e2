"""The indexing, in a process of its own: its threads want neither the keys' GIL nor their CPU."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path

from aioembed.index import SyncReport

LINE_BYTES = 1 << 20
ENDED_WELL = (0, 1)  # 1: some pictures have no vector


class IndexingFailed(Exception):
    """The folder could not be indexed, or only in part."""


async def index_folder(
    folder: Path, index_file: Path, model: str, note: Callable[[SyncReport], None]
) -> None:
    """Bring an index up to date with a folder. Cancelled, it ends the process.

    Args:
        folder: Of pictures.
        index_file: May be open here, too.
        model: A name, a path or a URL.
        note: Told how far it is, a few times a second.

    Raises:
        IndexingFailed: With the words of the process.
    """
    process = await asyncio.create_subprocess_exec(
        *command(folder, index_file, model),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        limit=LINE_BYTES,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        report, words = await asyncio.gather(follow(process.stdout, note), process.stderr.read())
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code not in ENDED_WELL or report.is_scanning:
        raise IndexingFailed(last_words(words.decode()) or f"the indexing ended with {code}")


def command(folder: Path, index_file: Path, model: str) -> list[str]:
    index = [sys.executable, "-P", "-m", "aioembed", "index", str(folder.absolute())]
    options = ["--index", str(index_file), "--model", model, "--format", "jsonl"]
    return [*giving_way(), *index, *options]


def giving_way() -> list[str]:
    """Return what runs a command only while nobody else wants the CPU, as far as the system can."""
    ways = (["chrt", "--idle", "0"], ["nice", "-n", "19"])  # Linux's own gives way at once
    return next((way for way in ways if shutil.which(way[0])), [])


async def follow(lines: asyncio.StreamReader, note: Callable[[SyncReport], None]) -> SyncReport:
    report = SyncReport()
    async for line in lines:
        told = json.loads(line)
        if "error" not in told:
            report = SyncReport(**told)
            note(report)
    return report


def last_words(stderr: str) -> str:
    *_, last = ["", *stderr.splitlines()]
    return last.removeprefix("aioembed: error: ")
