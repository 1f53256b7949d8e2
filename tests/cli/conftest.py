"""Images to embed, and the command line in this process and in a separate one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("typer")

from typer.testing import CliRunner, Result

from aioembed.cli.app import app

Invoke = Callable[..., Result]
RunProcess = Callable[..., subprocess.CompletedProcess[bytes]]

SIDE = 96


def draw(seed: int) -> Image.Image:
    """Return a picture of coarse random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.NEAREST)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three different images as files."""
    paths = [tmp_path / f"picture-{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        draw(seed).save(path)
    return paths


@pytest.fixture
def picture(pictures: list[Path]) -> Path:
    """One image as a file."""
    return pictures[0]


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process; its stdout and stderr are kept apart."""

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)

    return run


@pytest.fixture
def run_process(tmp_path: Path) -> RunProcess:
    """Run `python -m aioembed` in its own process, in an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "aioembed", *(str(one) for one in arguments)]
        return subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=folder)

    return run
