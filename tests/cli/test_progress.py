"""What stderr shows of a model that takes its time."""

from __future__ import annotations

import io
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from aioembed import ImageEmbeddings, ModelState, Status
from aioembed.cli.embed import embed_all, named_images
from aioembed.cli.progress import ProgressLine, describe_download

from ..programs import TINY_IMAGE

_MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            ModelState(
                status=Status.DOWNLOADING,
                download_progress=0.25,
                downloaded_bytes=88 * _MEGABYTE,
                total_bytes=352 * _MEGABYTE,
                download_rate=12.5 * _MEGABYTE,
                download_eta=21.1,
            ),
            "25% of 352 MB, 12.5 MB/s, 21 s left",
        ),
        (ModelState(status=Status.DOWNLOADING, downloaded_bytes=3 * _MEGABYTE), "3 MB"),
        (
            ModelState(status=Status.DOWNLOADING, downloaded_bytes=_MEGABYTE, is_paused=True),
            "1 MB, paused",
        ),
    ],
    ids=["with a length", "without a length", "paused"],
)
def test_a_download_is_described(state: ModelState, words: str) -> None:
    assert describe_download(state) == words


def test_a_terminal_shows_the_states_and_the_count(pictures: list[Path]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)

    async def run() -> None:
        model = ImageEmbeddings(TINY_IMAGE)
        images = named_images([str(path) for path in pictures])
        with ProgressLine(model, len(images), console) as progress:
            async with model:
                await model.load()
                await embed_all(model, images, on_done=progress.advance)
                console.print("done")

    anyio.run(run)
    assert "embedding: 3 of 3 done" in screen.getvalue()


def test_what_is_no_terminal_shows_nothing(pictures: list[Path]) -> None:
    screen = io.StringIO()

    async def run() -> None:
        model = ImageEmbeddings(TINY_IMAGE)
        with ProgressLine(model, 1, Console(file=screen)):
            async with model:
                await model.load()

    anyio.run(run)
    assert screen.getvalue() == ""
