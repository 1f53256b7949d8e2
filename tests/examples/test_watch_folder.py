"""A folder whose pictures appear, change and disappear while it is watched."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings

from .conftest import run, start

pytest.importorskip("watchfiles")

from sample_images import draw
from watch_folder import watch

from aioembed.index import EmbeddingIndex, SyncReport

pytestmark = pytest.mark.anyio


class Watched:
    """A folder under watch."""

    def __init__(self, folder: Path, index: Path) -> None:
        self.folder = folder
        self.index = index
        self.send, self.reports = anyio.create_memory_object_stream[SyncReport](math.inf)

    async def until(self, condition: Callable[[SyncReport], object]) -> None:
        with anyio.fail_after(60):
            while not condition(await self.reports.receive()):
                pass

    async def keys(self) -> list[str]:
        async with EmbeddingIndex(self.index) as index:
            return [str(Path(key).relative_to(self.folder)) for key in await index.keys()]

    async def vector(self, name: str) -> Any:
        async with EmbeddingIndex(self.index) as index:
            return await index.get(str(self.folder / name))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "before.png").write_bytes(draw(0))
    return folder


@asynccontextmanager
async def watched(folder: Path, index: Path) -> AsyncIterator[Watched]:
    watched, stop = Watched(folder, index), anyio.Event()
    async with watched.send, watched.reports, anyio.create_task_group() as tasks:
        tasks.start_soon(watch, folder, index, stop, watched.send.send_nowait)
        await watched.until(lambda report: report.total)
        yield watched
        stop.set()


async def test_the_index_follows_the_folder(folder: Path, tmp_path: Path) -> None:
    async with watched(folder, tmp_path / "photos.db") as seen:
        assert await seen.keys() == ["before.png"]
        (folder / "new.png").write_bytes(draw(1))
        await seen.until(lambda report: report.embedded)
        (folder / "notes.txt").write_text("no picture")
        (folder / "deep").mkdir()
        (folder / "new.png").rename(folder / "deep" / "moved.png")
        await seen.until(lambda report: report.moved)
        assert await seen.keys() == ["before.png", "deep/moved.png"]
        (folder / "before.png").unlink()
        await seen.until(lambda report: report.removed)
        assert await seen.keys() == ["deep/moved.png"]
        (folder / "deep" / "moved.png").write_bytes(draw(2))
        await seen.until(lambda report: report.embedded)
    async with ImageEmbeddings(EFFICIENTNET_LITE0) as model:
        expected = await model.forward(draw(2))
    np.testing.assert_allclose(await seen.vector("deep/moved.png"), expected, atol=1e-6)


async def test_a_half_written_picture_is_embedded_when_it_is_complete(
    folder: Path, tmp_path: Path
) -> None:
    content = draw(3, side=200)
    async with watched(folder, tmp_path / "photos.db") as seen:
        with (folder / "slow.png").open("wb", buffering=0) as file:
            for part in (content[:100], content[100:-80]):
                file.write(part)
                await seen.until(lambda report: report.failed)
                assert await seen.keys() == ["before.png"]
            file.write(content[-80:])
            await seen.until(lambda report: report.embedded)
        assert await seen.keys() == ["before.png", "slow.png"]


async def test_an_index_inside_the_folder_does_not_trigger_a_sync(folder: Path) -> None:
    async with watched(folder, folder / "photos.db") as seen:
        (folder / "new.png").write_bytes(draw(1))
        await seen.until(lambda report: report.embedded)
        (folder / "last.png").write_bytes(draw(2))
        await seen.until(lambda report: report.embedded)
    assert seen.reports.statistics().current_buffer_used <= 2


async def test_changes_made_while_it_did_not_run_are_found_and_sigterm_ends_it(
    folder: Path, tmp_path: Path
) -> None:
    def run_once(expected: str) -> None:
        arguments = (folder, "--index", tmp_path / "photos.db")
        with start("watch_folder.py", *arguments) as process:
            assert process.stdout is not None
            assert expected in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 0

    (folder / "stays.png").write_bytes(draw(5))
    await anyio.to_thread.run_sync(run_once, "2 embedded, 0 unchanged, 0 removed")
    (folder / "before.png").unlink()
    (folder / "meanwhile.png").write_bytes(draw(4))
    await anyio.to_thread.run_sync(run_once, "1 embedded, 1 unchanged, 1 removed")


def test_the_demo_runs() -> None:
    last = run("watch_folder.py", "demo").splitlines()[-1]
    assert last == "0 embedded, 2 unchanged, 1 removed, 0 failed"
