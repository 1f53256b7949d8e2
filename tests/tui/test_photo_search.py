"""The example `photo_search`, driven by a pilot."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

pytest.importorskip("apsw")
pytest.importorskip("sqlite_vec")

from aioembed import GIST_512, ImageEmbeddings, Status

from ..index.conftest import draw

pytestmark = pytest.mark.anyio

_EXAMPLE = Path(__file__).parents[2] / "examples" / "photo_search"


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(_EXAMPLE)
    module = importlib.import_module("photo_app")

    def make(folder: Path) -> Any:
        return module.PhotoSearch(folder, tmp_path / "photos.db", model=ImageEmbeddings(GIST_512))

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        draw(folder / f"{name}.png", seed)
    return folder


async def indexed(app: Any, pilot: Pilot[None]) -> None:
    while app.syncing is None:
        await pilot.pause()
    await app.syncing


async def search(app: Any, pilot: Pilot[None], query: str) -> list[str]:
    app.query_one("#query", Input).value = query
    await pilot.press("enter")
    await app.workers.wait_for_complete()
    await pilot.pause()
    return [Path(hit.key).name for hit in app.hits]


def told(app: Any) -> str:
    return str(app.query_one("#told", Static).render())


@pytest.mark.parametrize("width", [40, 120])
async def test_a_folder_is_indexed_and_searched_by_picture(
    make_app: Any, photos: Path, width: int
) -> None:
    app = make_app(photos)
    async with app.run_test(size=(width, 30)) as pilot:
        await indexed(app, pilot)
        app.show_report()
        assert str(app.query_one("#report", Static).render()) == "3 of 3 pictures"

        found = await search(app, pilot, "two")
        results = app.query_one("#results")
        assert found[0] == "two.png"
        assert (sorted(found), results.count) == (["one.png", "three.png", "two.png"], 3)
        assert told(app) == "3 nearest to two"
        first = "".join(line.text for line in results.lines[:4])
        assert "two.png" in first
        assert "1.000" in first
        assert "▀" in first
        assert all(widget.region.right <= width for widget in app.query("*"))
        assert all(widget.size.width > 0 for widget in app.query("Input, #results, ModelStatus"))

        results.focus()
        await pilot.press("down", "enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert Path(app.hits[0].key).name == found[1]
    assert app.model.state.status is Status.CLOSED


async def test_what_is_not_there_is_said_and_the_app_goes_on(make_app: Any, photos: Path) -> None:
    app = make_app(photos)
    async with app.run_test(size=(80, 30)) as pilot:
        await indexed(app, pilot)
        assert await search(app, pilot, "seven") == []
        assert told(app) == "no picture 'seven' here"
        app.query_one("#folder", Input).value = str(photos / "nowhere")
        app.query_one("#folder", Input).focus()
        await pilot.press("enter")
        await indexed(app, pilot)
        assert "nowhere" in told(app)
        app.query_one("#query", Input).focus()
        assert (await search(app, pilot, str(photos / "three.png")))[0] == "three.png"


async def test_a_damaged_index_is_said(make_app: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.db").write_bytes(b"no database" * 1000)
    app = make_app(photos)
    async with app.run_test(size=(80, 30)) as pilot:
        await pilot.pause()
        assert "damaged or no index" in told(app)


async def test_leaving_while_it_is_indexed_keeps_what_was_embedded(
    make_app: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(40):
        draw(folder / f"{seed}.png", seed)
    app = make_app(folder)
    async with app.run_test(size=(80, 30)) as pilot:
        while app.report.embedded < 3:
            await pilot.pause()
        embedded = app.report.embedded
    again = make_app(folder)
    async with again.run_test(size=(80, 30)) as pilot:
        await indexed(again, pilot)
        assert again.report.done == 40
        assert again.report.unchanged >= embedded
