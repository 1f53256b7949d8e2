"""The page about user interfaces: its app runs, its store prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aioembed import Status

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "reactive-uis.md"
_BLOCKS = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
(_APP,) = (block for block in _BLOCKS if "ModelMixin" in block)
(_STORE,) = (block for block in _BLOCKS if "def render" in block)


@pytest.mark.anyio
async def test_the_app_shows_its_model_and_closes_it() -> None:
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(_APP, str(_PAGE), "exec"), names)
    app = names["Photos"]()  # type: ignore[operator]
    async with app.run_test(size=(40, 8)) as pilot:
        await app.model.wait_for(Status.READY)
        await pilot.pause()
        assert app.sub_title == "ready"
    assert app.model.state.status is Status.CLOSED


def test_the_store_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(_STORE, str(_PAGE), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.split()
    assert (printed[0], printed[-2], printed[-1]) == ("idle", "ready", "closed")


@pytest.mark.parametrize("example", ["live_state.py", "download_progress.py"])
def test_an_example_ends_well_without_a_network(example: str) -> None:
    done = subprocess.run(
        [sys.executable, str(_ROOT / "examples" / example)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout or "closed" in done.stdout
