"""Damaged and unknown programs on this machine: a typed error here, never the process's death."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from aioembed import ImageEmbeddings, Status
from aioembed import _probe as probing
from aioembed._child import python_child
from aioembed.errors import AioembedError, IntegrityError, ProbeFailed
from aioembed.models import local_path

from ..programs import TINY_IMAGE

pytestmark = pytest.mark.anyio

VARIANTS = 300
_DAMAGE = Path(__file__).resolve().parents[1] / "runtime" / "children" / "corrupt.py"


def whole() -> bytes:
    path = local_path(TINY_IMAGE)
    assert path is not None
    return path.read_bytes()


def damaged(number: int) -> bytes:
    spec = importlib.util.spec_from_file_location("corrupt", _DAMAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content: bytes = module.damaged(whole(), number)
    return content


async def test_300_damaged_copies_of_the_embedded_model_are_each_a_typed_error(
    tmp_path: Path,
) -> None:
    """Native code never sees them: the published hash is compared first."""
    path = tmp_path / "mine.pte"
    spec = TINY_IMAGE.model_copy(update={"source": str(path)})
    outcomes: Counter[str] = Counter()
    for number in range(VARIANTS):
        content = damaged(number)
        path.write_bytes(content)
        model = ImageEmbeddings(spec)
        try:
            await model.load()
        except IntegrityError:
            assert content != whole()
            outcomes["IntegrityError"] += 1
        else:
            assert content == whole()
            outcomes["undamaged"] += 1
        await model.aclose()
    print(f"\n{dict(outcomes)}")
    assert outcomes.total() == VARIANTS
    assert outcomes["IntegrityError"] > VARIANTS * 0.9


async def test_a_local_program_of_unknown_origin_is_tried_once_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    real = probing.probe

    async def noted(path: Path) -> None:
        tried.append(path)
        await real(path)

    monkeypatch.setattr(probing, "probe", noted)
    path = tmp_path / "mine.pte"
    path.write_bytes(whole())
    for _ in range(2):
        async with ImageEmbeddings(path, cache_dir=tmp_path / "cache") as model:
            await model.load()
    assert tried == [path]
    path.write_bytes(whole() + b"\0")
    async with ImageEmbeddings(path, cache_dir=tmp_path / "cache") as model:
        await model.load()
    assert tried == [path, path]


async def test_a_local_program_that_kills_its_child_is_an_error_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'try_program' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGBUS)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "mine.pte"
    path.write_bytes(whole())
    async with ImageEmbeddings(path, cache_dir=tmp_path / "cache") as model:
        with pytest.raises(ProbeFailed, match="SIGBUS"):
            await model.load()
        assert model.state.status is Status.FAILED


_IN_ANOTHER_FOLDER = """
import os, sys
import anyio
import aioembed

async def main():
    os.chdir(sys.argv[1])
    sys.path.insert(0, "")  # as an interactive session has it
    async with aioembed.ImageEmbeddings(sys.argv[2], cache_dir=sys.argv[3]) as model:
        await model.load()

anyio.run(main)
"""


@pytest.mark.parametrize("module", ["numpy", "random", "aioembed", "sitecustomize"])
def test_the_trial_imports_nothing_from_the_current_folder(tmp_path: Path, module: str) -> None:
    """A module beside the program is not executed, and one beside the caller does not break it."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / f"{module}.py").write_text("open('EXECUTED', 'w'); raise ImportError('not this one')")
    (folder / "model.pte").write_bytes(whole())
    arguments = [str(folder), "./model.pte", str(tmp_path / "cache")]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(["", *sys.path])  # an empty entry: wherever you are
    command = [sys.executable, "-P", "-c", _IN_ANOTHER_FOLDER, *arguments]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert not (folder / "EXECUTED").exists()


def test_the_trial_imports_what_this_process_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child gets `sys.path`, relative entries made absolute, however it came about."""
    (tmp_path / "only_here.py").write_text("def answer(): return 42")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path.name, ""])
    command, environment = python_child("only_here:answer")
    child = subprocess.run(command, check=False, env=environment, cwd="/")
    assert child.returncode == 42


@pytest.mark.parametrize("number", range(0, 60, 7))
async def test_damaged_programs_without_a_hash_never_end_this_process(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "mine.pte"
    path.write_bytes(damaged(number))
    async with ImageEmbeddings(path, cache_dir=tmp_path / "cache") as model:
        with contextlib.suppress(AioembedError):
            await model.load()
        assert model.state.is_ready == (model.state.error is None)
