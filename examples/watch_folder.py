"""Keep an index of the pictures in a folder, while they appear, change and disappear.

    python examples/watch_folder.py demo                     # offline, with a folder of its own
    python examples/watch_folder.py watch FOLDER --index photos.db

What happened while it did not run is made up for when it starts. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import math
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from sample_images import draw
from watchfiles import Change, awatch

from aioembed import GIST_512, ImageEmbeddings
from aioembed.index import EmbeddingIndex, SyncReport


class Watcher:
    """Follows a folder.

    Args:
        folder: Its subfolders count.
        model: Embeds the pictures.
        index: Keeps the vectors, by the pictures' paths.
        on_synced: Told what was done each time the index has caught up with the folder.
    """

    def __init__(
        self,
        folder: Path,
        model: ImageEmbeddings,
        index: EmbeddingIndex,
        on_synced: Callable[[SyncReport], object],
    ) -> None:
        self._folder = folder
        self._model = model
        self._index = index
        self._on_synced = on_synced
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Let `run` end when the work under way is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Sync at once, and again after each burst of changes.

        A picture that is half-written fails, and is read again with the change that completes it.
        """
        behind = True
        async for changes in awatch(
            self._folder,
            watch_filter=self._concerns,
            stop_event=self._stopping,
            yield_on_timeout=True,  # the first one says that watching has begun
            rust_timeout=200,
            debounce=400,
        ):
            if behind or changes:
                self._on_synced(await self._index.sync(self._folder, self._model))
                behind = False

    def _concerns(self, _change: Change, path: str) -> bool:
        return not path.startswith(str(self._index.path.absolute()))  # nor its -wal and -shm


async def stop_on_signal(watcher: Watcher) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            watcher.stop()


def tell(report: SyncReport) -> None:
    print(
        f"{report.embedded} embedded, {report.unchanged} unchanged, {report.removed} removed, "
        f"{report.failed} failed",
        flush=True,
    )


@asynccontextmanager
async def watcher_of(
    folder: Path, index: Path, on_synced: Callable[[SyncReport], object] = tell
) -> AsyncIterator[Watcher]:
    async with ImageEmbeddings(GIST_512) as model, EmbeddingIndex(index) as vectors:
        yield Watcher(folder, model, vectors, on_synced)


async def watch(folder: Path, index: Path) -> None:
    async with watcher_of(folder, index) as watcher, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal, watcher)
        await watcher.run()
        tasks.cancel_scope.cancel()


async def demo() -> None:
    """Let pictures appear, change and disappear, and show what becomes of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        await anyio.Path(folder).mkdir()
        reports, received = anyio.create_memory_object_stream[SyncReport](math.inf)
        async with (
            reports,
            received,
            watcher_of(folder, Path(name, "photos.db"), reports.send_nowait) as watcher,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(watcher.run)
            await received.receive()
            for words, outcome, number, content in steps():
                path = folder / f"{number}.png"
                path.unlink() if content is None else path.write_bytes(content)
                report = await received.receive()
                while not getattr(report, outcome):
                    report = await received.receive()
                print(f"{words:28}", end="")
                tell(report)
            watcher.stop()


def steps() -> Iterator[tuple[str, str, int, bytes | None]]:
    """Yield what is done, what is to come of it, and to which picture."""
    for number in range(3):
        yield f"{number}.png appears", "embedded", number, draw(number)
    yield "0.png changes", "embedded", 0, draw(10)
    yield "1.png disappears", "removed", 1, None
    yield "3.png is half-written", "failed", 3, draw(3)[:-100]
    yield "3.png is complete", "embedded", 3, draw(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo")
    watching = commands.add_parser("watch")
    watching.add_argument("folder", type=Path)
    watching.add_argument("--index", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "demo":
        anyio.run(demo)
    else:
        anyio.run(watch, options.folder, options.index)


if __name__ == "__main__":
    main()
