"""The test modules that the page on testing shows pass as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .pages import Snippet, snippets

pytest.importorskip("pytest_asyncio")

_MODULES = [one for one in snippets() if one.page.name == "testing.md" and "def test_" in one.code]


@pytest.mark.parametrize("module", _MODULES, ids=lambda module: module.name)
def test_a_module_of_tests_passes(module: Snippet, tmp_path: Path) -> None:
    path = tmp_path / "test_shown.py"
    path.write_text(module.code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_both_plugins_are_shown() -> None:
    assert len(_MODULES) == 2
