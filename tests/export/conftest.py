"""Checkpoints and programs that the exporter's tests share: each is made once."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from aioembed.runtime import Program


class Exported(NamedTuple):
    """A program that was exported, and what the exporter said of it."""

    program: Program
    report: Any


Checkpoints = Callable[[str], Path]
Exports = Callable[[str, str, str], Exported]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Folder of a tiny checkpoint of `TINY`, with random weights. Not to be changed."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from .checkpoints import save_tiny, save_tokenizer

    return functools.cache(
        lambda name: save_tokenizer(save_tiny(tmp_path_factory.mktemp(name) / name, name))
    )


@pytest.fixture(scope="session")
def tiny_clip(tiny: Checkpoints) -> Path:
    """Folder of a tiny CLIP. Not to be changed."""
    return tiny("clip")


@pytest.fixture(scope="session")
def exported(tiny: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    """Program of a tiny checkpoint, by its name, a tower and a precision.

    Each is exported once, by whichever of pytest-xdist's workers comes first.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with ExitStack() as stack:

        @functools.cache
        def export(name: str, tower: Any, precision: Any) -> Exported:
            from aioembed.export import ExportOptions, export_model

            out = folder / f"{name}-{tower}-{precision}.pte"
            said = out.with_suffix(".report")
            with FileLock(out.with_suffix(".lock")):
                if not said.exists():
                    options = ExportOptions(tower=tower, precision=precision)
                    said.write_bytes(pickle.dumps(export_model(tiny(name), out, options)))
            program = Program.load(out)
            stack.callback(program.close)
            return Exported(program, pickle.loads(said.read_bytes()))  # just written

        yield export
