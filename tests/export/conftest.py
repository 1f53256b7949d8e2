"""Checkpoints that the exporter's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIP with random weights. Not to be changed."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from .clip_checkpoints import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny-clip"))
