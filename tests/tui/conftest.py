"""Textual apps under test; Textual runs on asyncio alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("textual")

from aioembed.models import local_path

from ..handle.conftest import inference
from ..programs import TINY_IMAGE

__all__ = ["inference"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def program() -> bytes:
    """The embedded model's file."""
    path: Path | None = local_path(TINY_IMAGE)
    assert path is not None
    return path.read_bytes()
