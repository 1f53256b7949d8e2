"""The example `photo_search`, driven by a pilot."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from PIL import Image

pytest.importorskip("textual_image")

from textual.pilot import Pilot
from textual.widgets import Input, Label, OptionList, ProgressBar

from aioembed import EmbeddingSpace, ImageEmbeddings, ModelSpec, Status, TextEmbeddings
from aioembed.index import EmbeddingIndex

from ..index.conftest import draw
from ..programs import TINY_IMAGE

pytestmark = [
    pytest.mark.anyio,
    # textual-image 0.12 calls what Pillow 14 will not have
    pytest.mark.filterwarnings("ignore:Image.Image.getdata is deprecated:DeprecationWarning"),
]

COMMITTED_TOGETHER = 32
EXIF_ORIENTATION = 0x0112
_ROOT = Path(__file__).parents[2]
_TEXT_PROGRAMS = _ROOT / "tests" / "text" / "fixtures"

App = Any  # the example is a script
Driven = tuple[App, Pilot[None]]
Drive = Callable[..., AbstractAsyncContextManager[Driven]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(_ROOT / "examples")
    return importlib.import_module("photo_search")


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    return tmp_path / "photos.db"


@pytest.fixture
def drive(example: Any, index_file: Path) -> Drive:
    @asynccontextmanager
    async def run(
        folder: Path, size: tuple[int, int] = (80, 24), **models: Any
    ) -> AsyncIterator[Driven]:
        chosen = {"model": ImageEmbeddings(TINY_IMAGE)} | models
        async with EmbeddingIndex(index_file) as index:
            app = example.PhotoSearch(folder, index, **chosen)
            async with app.run_test(size=size) as pilot:
                yield app, pilot

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("one", "two", "three")):
        draw(folder / f"{name}.png", seed)
    return folder


@pytest.fixture
def complaints(example: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(
        example.PhotoSearch, "notify", lambda app, message, **options: said.append(message)
    )
    return said


async def settled(app: App, pilot: Pilot[None]) -> None:
    with anyio.fail_after(60):
        await app.workers.wait_for_complete()
    await pilot.pause()


async def search(app: App, pilot: Pilot[None], query: str) -> list[str]:
    """Type a query; return the names of what was found, the nearest first."""
    field = app.query_one("#query", Input)
    field.focus()
    field.value = query
    await pilot.press("enter")
    await settled(app, pilot)
    return found(app)


def found(app: App) -> list[str]:
    return [Path(str(option.id)).name for option in app.query_one(OptionList).options]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_a_folder_is_indexed_searched_by_picture_and_shown(
    drive: Drive, photos: Path, size: tuple[int, int]
) -> None:
    async with drive(photos, size) as (app, pilot):
        await settled(app, pilot)
        first, *others = await search(app, pilot, "two")
        app.show_report()
        bar = app.query_one(ProgressBar)
        assert (bar.progress, bar.total) == (3, 3)
        assert str(app.query_one("#figures", Label).render()) == "photos: 3 of 3"
        assert first == "two.png"
        assert sorted(others) == ["one.png", "three.png"]
        assert str(app.query_one("#path", Label).render()) == str(photos / "two.png")
        assert app.query_one("#preview").image.size == (64, 48)
        assert app.query_one("#preview").size.width >= size[0] // 4
        assert all(widget.region.right <= size[0] for widget in app.query("*"))
        assert all(widget.region.bottom <= size[1] for widget in app.query("#preview, OptionList"))

        await pilot.press("down", "c")
        assert app.clipboard == str(photos / others[0])
        await pilot.press("enter")
        await settled(app, pilot)
        assert found(app)[0] == others[0]
    assert app.model.state.status is Status.CLOSED


async def test_only_a_picture_that_is_not_indexed_needs_the_model(
    drive: Drive, photos: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes((photos / "two.png").read_bytes())
    async with drive(photos) as (app, pilot):
        await settled(app, pilot)
        before = app.model.statistics().succeeded
        assert (await search(app, pilot, "two.png"))[0] == "two.png"
        assert app.model.statistics().succeeded == before
        assert (await search(app, pilot, str(outside)))[0] == "two.png"
        assert app.model.statistics().succeeded == before + 1


def known(name: str, modality: Literal["image", "text"] = "image") -> ModelSpec:
    """Return a program with its hash, so that it is not tried in a child process first."""
    path = _TEXT_PROGRAMS / name
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelSpec(name=path.stem, source=str(path), modality=modality, sha256=sha256)


async def test_words_find_pictures(drive: Drive, photos: Path) -> None:
    models = {
        "model": ImageEmbeddings(known("image.pte")),
        "text_model": TextEmbeddings(known("padded_text.pte", modality="text")),
    }
    async with drive(photos, **models) as (app, pilot):
        await settled(app, pilot)
        assert sorted(await search(app, pilot, "a cat")) == ["one.png", "three.png", "two.png"]
        await search(app, pilot, "two")  # a part of a name is words, too
        assert app.text_model.statistics().succeeded == 2
        assert (await search(app, pilot, "two.png"))[0] == "two.png"
        assert app.text_model.statistics().succeeded == 2


async def test_another_folder_is_chosen(drive: Drive, photos: Path, tmp_path: Path) -> None:
    draw(tmp_path / "lone.png", 7)
    async with drive(photos) as (app, pilot):
        await settled(app, pilot)
        await pilot.press("ctrl+o")
        await pilot.pause()
        app.screen.query_one(Input).value = str(tmp_path)
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.report.done == 4
        assert (await search(app, pilot, "lone"))[0] == "lone.png"
        await pilot.press("ctrl+o", "escape")
        await settled(app, pilot)
        assert app.folder == tmp_path


async def test_a_missing_file_is_reported_and_the_app_continues(
    drive: Drive, photos: Path, complaints: list[str]
) -> None:
    async with drive(photos / "nowhere") as (app, pilot):
        await settled(app, pilot)
        assert "nowhere" in complaints.pop()
        app.sync(photos)
        await settled(app, pilot)
        assert await search(app, pilot, "seven") == []
        assert "no picture 'seven'" in complaints.pop()
        assert (await search(app, pilot, "three"))[0] == "three.png"
        (photos / "three.png").unlink()
        await search(app, pilot, "three")
        assert "not readable" in str(app.query_one("#path", Label).render())


async def test_a_drive_that_is_not_mounted_is_reported(
    drive: Drive, photos: Path, complaints: list[str]
) -> None:
    async with drive(photos) as (app, pilot):
        await settled(app, pilot)
        for name in ("one", "two", "three"):
            (photos / f"{name}.png").unlink()
        app.sync(photos)
        await settled(app, pilot)
        assert complaints == ["3 pictures are missing: is a drive not mounted?"]


async def test_an_index_of_another_space_is_reported(
    drive: Drive, photos: Path, index_file: Path, complaints: list[str]
) -> None:
    async with EmbeddingIndex(index_file, space=EmbeddingSpace(base="0123456789abcdef")) as index:
        await index.add("x", [1.0] * 512)
    async with drive(photos) as (app, pilot):
        await settled(app, pilot)
        assert "the model that it was made with" in complaints.pop()


async def test_leaving_while_it_is_indexed_keeps_what_was_committed(
    drive: Drive, tmp_path: Path, index_file: Path
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for seed in range(3 * COMMITTED_TOGETHER):
        draw(album / f"{seed}.png", seed)
    async with drive(album) as (app, pilot):
        with anyio.fail_after(60):
            while app.report.embedded <= COMMITTED_TOGETHER:
                await pilot.pause()
        reported = app.report.embedded
    async with EmbeddingIndex(index_file) as index:
        assert await index.count() >= reported


@pytest.mark.parametrize("stated_in", ["exif", "xmp"])
def test_pictures_are_shown_upright(example: Any, tmp_path: Path, stated_in: str) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    xmp = b"<rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\"6\"/>"
    stated = {"exif": exif} if stated_in == "exif" else {"xmp": xmp}
    Image.new("RGB", (60, 20)).save(path, **stated)
    assert example.open_upright(str(path), (100, 100)).size == (20, 60)


def test_an_index_that_cannot_be_opened_is_reported_on_one_line(
    example: Any, index_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_file.write_bytes(b"no database" * 100)
    command = ["photo_search.py", str(index_file.parent), "--index", str(index_file)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="is not an index"):
        example.main()
