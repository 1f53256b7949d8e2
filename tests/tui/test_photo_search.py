"""The example `photo_search`, driven by a pilot."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from textual._compositor import Compositor
from textual.events import MouseScrollDown, MouseScrollUp
from textual.pilot import Pilot
from textual.widgets import Input, Static

pytest.importorskip("typer")

from aioembed import EmbeddingSpace, Status
from aioembed.index import EmbeddingIndex

from ..index.conftest import draw

pytestmark = pytest.mark.anyio

COMMITTED_TOGETHER = 32
_EXAMPLE = Path(__file__).parents[2] / "examples" / "photo_search"


@pytest.fixture
def make_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(_EXAMPLE)
    module = importlib.import_module("photo_app")

    def make(folder: Path) -> Any:
        return module.PhotoSearch(folder, tmp_path / "photos.db")

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
        bar, words = str(app.query_one("#progress").render()).splitlines()
        assert set(bar) == {"━"}
        assert words == "3 of 3 pictures"

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


async def test_only_a_picture_that_is_not_indexed_needs_the_model(
    make_app: Any, photos: Path, tmp_path: Path
) -> None:
    app = make_app(photos)
    outside = tmp_path / "outside.png"
    outside.write_bytes((photos / "two.png").read_bytes())
    async with app.run_test(size=(80, 30)) as pilot:
        await indexed(app, pilot)
        assert (await search(app, pilot, str(photos / "two.png")))[0] == "two.png"
        similar = [hit.similarity for hit in app.hits]
        assert app.model.statistics().succeeded == 0
        assert (await search(app, pilot, str(outside)))[0] == "two.png"
        assert app.model.statistics().succeeded == 1
        assert [hit.similarity for hit in app.hits] == pytest.approx(similar, abs=1e-5)


def thumbnailers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "thumbnailer.py" in " ".join(child.cmdline())
    ]


def has_picture(line: Any) -> bool:
    return "▀" in line.text


async def test_thumbnails_come_from_a_process_that_may_be_killed_and_ends_with_the_app(
    make_app: Any, photos: Path
) -> None:
    app = make_app(photos)
    async with app.run_test(size=(80, 30)) as pilot:
        await indexed(app, pilot)
        (photos / "one.png").unlink()
        await search(app, pilot, "two")
        lines, names = app.query_one("#results").lines, [Path(hit.key).stem for hit in app.hits]
        shown = dict(zip(names, map(has_picture, lines[::4]), strict=True))
        assert shown == {"one": False, "two": True, "three": True}

        (process,) = thumbnailers()
        process.kill()
        app.thumbnails._made.clear()
        await search(app, pilot, "two")  # by the time it is asked it may not be known as dead
        await search(app, pilot, "two")
        assert has_picture(app.query_one("#results").lines[0])
        (process,) = thumbnailers()
    assert not process.is_running()


async def test_results_that_are_drawn_while_the_terminal_is_resized_fit(
    make_app: Any, many: Path
) -> None:
    app = make_app(many)
    async with app.run_test(size=(120, 30)) as pilot:
        results = await many_results(app, pilot)
        lines = list(results.lines)
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        results.show(lines)
        shown = results.render_lines(results.size.region)
        assert {line.cell_length for line in shown} == {results.size.width}


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
        assert "is not an index" in told(app)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """So many pictures that they take seconds."""
    folder = tmp_path / "album"
    folder.mkdir()
    for seed in range(200):
        draw(folder / f"{seed}.png", seed)
    return folder


async def half_indexed(app: Any, pilot: Pilot[None]) -> psutil.Process:
    """Return the process that indexes, when it has committed some."""
    while app.report.embedded <= COMMITTED_TOGETHER:
        await pilot.pause(0.02)  # without it, this process would leave that one no CPU
    children = psutil.Process().children()
    (process,) = (child for child in children if str(app.folder) in child.cmdline())
    return process


async def test_leaving_while_it_is_indexed_ends_the_process_and_keeps_what_it_committed(
    make_app: Any, album: Path
) -> None:
    app = make_app(album)
    async with app.run_test(size=(80, 30)) as pilot:
        process = await half_indexed(app, pilot)
    assert not process.is_running()
    again = make_app(album)
    async with again.run_test(size=(80, 30)) as pilot:
        await indexed(again, pilot)
        assert again.report.done == 200
        assert again.report.unchanged >= COMMITTED_TOGETHER


async def test_another_folder_ends_the_indexing_of_the_one_before(
    make_app: Any, album: Path, photos: Path
) -> None:
    app = make_app(album)
    async with app.run_test(size=(80, 30)) as pilot:
        process = await half_indexed(app, pilot)
        before = app.syncing
        folder = app.query_one("#folder", Input)
        folder.value = str(photos)
        folder.focus()
        await pilot.press("enter")
        while app.syncing is before:
            await pilot.pause()
        assert not process.is_running()
        await indexed(app, pilot)
        assert app.report.done == 3
        app.query_one("#query").focus()
        assert await search(app, pilot, "two") != []


async def test_an_indexing_that_is_killed_is_said(make_app: Any, album: Path) -> None:
    app = make_app(album)
    async with app.run_test(size=(80, 30)) as pilot:
        process = await half_indexed(app, pilot)
        process.kill()
        await indexed(app, pilot)
        assert told(app) == "the indexing ended with -9"
        assert await search(app, pilot, str(album / "0.png")) != []


async def test_an_index_of_another_space_is_refused(
    make_app: Any, photos: Path, tmp_path: Path
) -> None:
    space = EmbeddingSpace(base="0123456789abcdef")
    async with EmbeddingIndex(tmp_path / "photos.db", space=space) as index:
        await index.add("x", [1.0] * 512)
    app = make_app(photos)
    async with app.run_test(size=(80, 30)) as pilot:
        await indexed(app, pilot)
        assert "the model that it was made with" in told(app)
        assert await search(app, pilot, str(photos / "two.png")) == []
        assert "the model that it was made with" in told(app)


async def many_results(app: Any, pilot: Pilot[None]) -> Any:
    """Search in a folder with more results than fit, and return their list, which has the focus."""
    await indexed(app, pilot)
    await search(app, pilot, "0")
    results = app.query_one("#results")
    results.focus()
    await pilot.pause()
    return results


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(12):
        draw(folder / f"{seed}.png", seed)
    return folder


async def test_the_marked_result_is_always_in_sight(make_app: Any, many: Path) -> None:
    app = make_app(many)
    async with app.run_test(size=(80, 24)) as pilot:
        results = await many_results(app, pilot)
        assert (results.count, results.top) == (12, 0)
        for key, marked in (("end", 11), ("up", 10), ("home", 0), ("pagedown", 4), ("pageup", 0)):
            await pilot.press(key)
            assert results.marked == marked
            assert results.top <= 4 * marked
            assert 4 * marked + 4 <= results.top + results.size.height
        await pilot.press("end")
        assert results.top + results.size.height == 48
        shown = results.render_lines(results.size.region)
        assert "▌" in shown[-1].text
        assert {line.cell_length for line in shown} == {results.size.width}

        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        shown = results.render_lines(results.size.region)
        assert {line.cell_length for line in shown} == {results.size.width}
        assert "▌" in "".join(line.text for line in shown)


async def test_the_wheel_scrolls_and_a_click_marks(make_app: Any, many: Path) -> None:
    app = make_app(many)
    async with app.run_test(size=(80, 24)) as pilot:
        results = await many_results(app, pilot)
        await pilot.click("#results", offset=(5, 5))
        assert results.marked == 1
        results.post_message(wheel(MouseScrollDown, results))
        await pilot.pause()
        assert (results.top, results.marked) == (3, 1)
        results.post_message(wheel(MouseScrollUp, results))
        await pilot.pause()
        assert results.top == 0


def wheel(event: Any, widget: Any) -> Any:
    return event(widget, 1, 1, 0, 0, 0, shift=False, meta=False, ctrl=False)


async def test_keys_and_focus_paint_and_lay_out_no_more_than_changed(
    make_app: Any, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole screen in Python takes longer than a key may wait."""
    app = make_app(many)
    async with app.run_test(size=(120, 40)) as pilot:
        results = await many_results(app, pilot)
        whole: list[str] = []
        monkeypatch.setattr(Compositor, "render_full_update", noting(whole, "painted"))
        monkeypatch.setattr(Compositor, "reflow", noting(whole, "laid out"))
        await pilot.press("down", "pagedown", "ctrl+f")
        await pilot.pause()
        assert not results.has_focus
        await pilot.press("a", "b", "tab")
        await pilot.pause()
        assert app.query_one("#query", Input).value == "ab"
        assert results.has_focus
        assert whole == []


def noting(calls: list[str], what: str) -> Any:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(what)
        return original(self, *arguments, **options)

    original: Any = getattr(Compositor, "reflow" if what == "laid out" else "render_full_update")
    return method


async def test_widgets_that_change_at_once_are_painted_one_by_one_that_with_the_focus_first(
    make_app: Any, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(many)
    painted: list[set[Any]] = []

    def note(compositor: Compositor, widgets: set[Any]) -> None:
        painted.append(set(widgets))
        update(compositor, widgets)

    async with app.run_test(size=(120, 40)) as pilot:
        results = await many_results(app, pilot)
        while app.screen._dirty_widgets:
            await pilot.pause()
        update = Compositor.update_widgets
        monkeypatch.setattr(Compositor, "update_widgets", note)
        changed = {app.query_one("Keys"), app.query_one("#told"), results}
        while missing := changed.difference(*painted):
            for widget in missing:  # again, where the whole screen was painted meanwhile
                widget.refresh()
            await pilot.pause()
    assert painted[0] == {results}
    assert all(len(widgets) == 1 for widgets in painted[:3])


async def test_the_line_of_keys_follows_the_focus_and_can_be_clicked(
    make_app: Any, many: Path
) -> None:
    app = make_app(many)
    async with app.run_test(size=(80, 24)) as pilot:
        await many_results(app, pilot)
        await pilot.pause()
        keys = app.query_one("Keys")
        assert "More like it" in str(keys.render())
        where = str(keys.render()).index("Search")
        await pilot.click("Keys", offset=(where, 0))
        await pilot.pause()
        assert app.query_one("#query").has_focus
        assert "More like it" not in str(keys.render())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is nicer, where there is `nice`")
async def test_the_indexing_gives_way(make_app: Any, album: Path) -> None:
    app, interval = make_app(album), sys.getswitchinterval()
    async with app.run_test(size=(80, 24)) as pilot:
        process = await half_indexed(app, pilot)
        assert {os.sched_getscheduler(one.id) for one in process.threads()} == {os.SCHED_IDLE}
        assert sys.getswitchinterval() < interval
    assert sys.getswitchinterval() == interval
