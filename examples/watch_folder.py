"""Keep an index of the pictures in a folder, while they appear, change and disappear.

    python examples/watch_folder.py demo                     # offline, with a temporary folder
    python examples/watch_folder.py FOLDER --index photos.db

Changes made while it did not run are found when it starts. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
from sample_images import draw
from watchfiles import Change, awatch

from aioembed import ImageEmbeddings
from aioembed.index import EmbeddingIndex, SyncReport


def show(report: SyncReport) -> None:
    print(
        f"{report.embedded} embedded, {report.unchanged} unchanged, {report.removed} removed, "
        f"{report.failed} failed",
        flush=True,
    )


async def watch(
    folder: Path,
    index_file: Path,
    stop: anyio.Event,
    on_synced: Callable[[SyncReport], object] = show,
) -> None:
    """Sync the index, and again after each burst of changes.

    A half-written picture fails, and is read again when it is complete.
    """

    def concerns(_change: Change, path: str) -> bool:
        return not path.startswith(str(index_file.absolute()))  # nor its -journal

    async with ImageEmbeddings() as model, EmbeddingIndex(index_file) as index:
        first = True
        async for changes in awatch(
            folder, watch_filter=concerns, stop_event=stop, yield_on_timeout=True, rust_timeout=200
        ):
            if first or changes:
                on_synced(await index.sync(folder, model))
            first = False


async def watch_until_signalled(folder: Path, index_file: Path) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, folder, index_file, stop)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                break
        stop.set()


async def demo() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, stop = Path(name, "pictures"), anyio.Event()
        await anyio.Path(folder).mkdir()
        send, reports = anyio.create_memory_object_stream[SyncReport](100)
        async with send, reports, anyio.create_task_group() as tasks:
            tasks.start_soon(watch, folder, Path(name, "photos.db"), stop, send.send_nowait)
            show(await reports.receive())
            for number in range(3):
                await anyio.Path(folder, f"{number}.png").write_bytes(draw(number))
                show(await reports.receive())
            await anyio.Path(folder, "1.png").unlink()
            show(await reports.receive())
            stop.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=Path, default=Path("photos.db"))
    given = parser.parse_args()
    if str(given.folder) == "demo":
        anyio.run(demo)
    else:
        anyio.run(watch_until_signalled, given.folder, given.index)
