"""The examples without other tests, run as they are documented."""

from __future__ import annotations

from .conftest import run


def test_a_download_is_watched_to_its_end() -> None:
    printed = run("download_progress.py")
    assert "downloading" in printed
    assert "of 4064 kB" in printed
    assert "ready" in printed
    assert "a vector of 1280 values" in printed
