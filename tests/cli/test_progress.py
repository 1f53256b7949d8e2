"""What stderr shows of a model that takes its time."""

from __future__ import annotations

import io
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from aioembed import ImageEmbeddings, ModelState, Status
from aioembed.cli.embed import embed_all, named_images
from aioembed.cli.progress import Pace, ProgressLine, describe_download, describe_seconds

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
    assert "embedding: 3 of 3 (100 %)" in screen.getvalue()


def test_no_progress_is_shown_without_a_terminal(pictures: list[Path]) -> None:
    screen = io.StringIO()

    async def run() -> None:
        model = ImageEmbeddings(TINY_IMAGE)
        with ProgressLine(model, 1, Console(file=screen)):
            async with model:
                await model.load()

    anyio.run(run)
    assert screen.getvalue() == ""


def test_the_pace_gives_rate_and_time_left_of_what_took_work() -> None:
    seconds = 0.0
    pace = Pace(lambda: seconds)
    assert pace.describe(900, 1000, 0) == "900 of 1,000 (90 %)"
    seconds = 10.0
    assert pace.describe(920, 1000, 20) == "920 of 1,000 (92 %), 2.0/s, 40 s left"
    seconds = 20.0
    assert pace.describe(1000, 1000, 100) == "1,000 of 1,000 (100 %), 5.0/s"
    assert pace.describe(0, 0, 0) == "0 of 0"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.4, "59 s"), (221, "3 min 41 s"), (7300, "2 h 1 min")]
)
def test_durations_are_described(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words
