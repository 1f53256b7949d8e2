"""Fixtures of the image tests."""

from __future__ import annotations

import pytest

from .support import drawn, encoded


@pytest.fixture
def png() -> bytes:
    """A small image."""
    return encoded(drawn(), "PNG")
