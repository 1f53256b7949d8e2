"""Damaged and unknown programs on this machine: a typed error here, never the process's death."""

from __future__ import annotations

import contextlib
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from aioembed import GIST_512, ImageEmbeddings, Status
from aioembed import _probe as probing
from aioembed.errors import AioembedError, IntegrityError, ProbeFailed
from aioembed.registry import local_path

pytestmark = pytest.mark.anyio

VARIANTS = 300
_DAMAGE = Path(__file__).resolve().parents[1] / "runtime" / "children" / "corrupt.py"


def whole() -> bytes:
    path = local_path(GIST_512)
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
    path = tmp_path / "gist_512.pte"
    spec = GIST_512.model_copy(update={"source": str(path)})
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


async def test_promise_25_a_local_program_of_unknown_origin_is_tried_once_in_a_child(
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


async def test_promise_25_a_local_program_that_kills_its_child_is_an_error_here(
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
