"""Figures in words: bytes, rates and times that fit 40 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aioembed import ImageEmbeddings, ModelState
from aioembed.integrations.textual import describe_download, describe_work, format_bytes, format_eta

from ..programs import TINY_IMAGE


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (61_344, "61.3 kB"), (351_500_000, "352 MB"), (2e15, "2000 TB")],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (125, "2:05 min"),
        (5400, "1:30 h"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert format_eta(seconds) == text


def test_a_download_shows_what_is_known_and_fits() -> None:
    state = ModelState(
        downloaded_bytes=140_600_000,
        total_bytes=351_500_000,
        download_rate=12_500_000,
        download_eta=17,
    )
    assert describe_download(state, 80) == "141 MB of 352 MB · 12.5 MB/s · 17 s left"
    assert describe_download(state) == "141 MB of 352 MB · 12.5 MB/s"
    assert describe_download(state.model_copy(update={"is_paused": True})).endswith("· paused")
    assert describe_download(ModelState(downloaded_bytes=10)) == "10 B"


def test_what_a_model_does_fits_and_leaves_out_the_least_important() -> None:
    statistics = replace(
        ImageEmbeddings(TINY_IMAGE).statistics(), succeeded=1_204_133, failed=12, throughput=41.5
    )
    state = ModelState(queue_depth=1024)
    assert (
        describe_work(state, statistics, 80) == "1,024 queued · 1,204,133 done · 12 failed · 41.5/s"
    )
    assert describe_work(state, statistics) == "1,024 queued · 1,204,133 done"
