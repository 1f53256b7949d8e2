"""Following a folder: only what changed is embedded, and nothing is lost on the way."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image

from aioembed import ImageEmbeddings, SourcePolicy
from aioembed.errors import FileReadFailed, IncompatibleSpaces
from aioembed.images import read_file
from aioembed.index import EmbeddingIndex, SyncReport

from ..programs import TINY_IMAGE
from .conftest import LONG_AGO_NS, SPACE, draw

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model() -> AsyncIterator[ImageEmbeddings]:
    async with ImageEmbeddings(TINY_IMAGE) as model:
        yield model


@pytest.fixture
async def index(index_file: Path) -> AsyncIterator[EmbeddingIndex]:
    async with EmbeddingIndex(index_file) as index:
        yield index


def _figures(report: SyncReport) -> tuple[int, int, int, int]:
    assert not report.is_scanning
    return report.embedded, report.unchanged, report.failed, report.removed


def _unmount(folder: Path) -> None:
    """Leave an empty folder, as a drive does that is not mounted."""
    shutil.rmtree(folder)
    folder.mkdir()


async def test_a_folder_is_indexed_once_and_searched_by_picture(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    report = await index.sync(album, model)
    assert _figures(report) == (4, 0, 0, 0)
    assert (report.scanned, report.ignored, report.total, report.done) == (5, 1, 4, 4)
    assert index.space == model.space

    before = model.statistics().submitted
    assert _figures(await index.sync(album, model)) == (0, 4, 0, 0)
    assert model.statistics().submitted == before

    hits = await index.search_item(album / "trip" / "d.png", model, k=2)
    assert hits[0].key == str(album / "trip" / "d.png")
    assert hits[0].similarity == pytest.approx(1, abs=1e-5)


async def test_only_what_changed_is_embedded_again(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    a, b = album / "a.png", album / "b.png"
    was = await index.get(str(a))
    draw(a, seed=50)
    os.utime(a, ns=(0, LONG_AGO_NS + 1))
    os.utime(b, ns=(0, LONG_AGO_NS + 1))
    shutil.rmtree(album / "trip")
    draw(album / "new.png", seed=51)

    assert _figures(await index.sync(album, model)) == (2, 2, 0, 1)
    assert await index.keys() == [
        str(album / name) for name in ("a.png", "b.png", "c.jpg", "new.png")
    ]
    now = await index.get(str(a))
    assert was is not None
    assert now is not None
    assert (was != now).any()


async def test_a_change_too_fresh_for_its_time_to_show_is_seen(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: LONG_AGO_NS + 1_000)
    picture = album / "a.png"
    size = picture.stat().st_size
    await index.sync(album, model)
    was = await index.get(str(picture))
    content = draw(album / "other.png", seed=60).read_bytes()
    (album / "other.png").unlink()
    picture.write_bytes(content[:size].ljust(size, b"\0"))
    os.utime(picture, ns=(LONG_AGO_NS, LONG_AGO_NS))

    report = await index.sync(album, model)
    now = await index.get(str(picture))
    assert report.unchanged == 3
    assert now is None or was is None or (now != was).any()


async def test_a_file_that_changes_while_it_is_read_is_embedded_again(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_rewrite(path: Path, policy: SourcePolicy) -> bytes:
        data = read_file(path, policy)
        if path.name == "a.png":
            draw(path, seed=70)
            os.utime(path, ns=(0, LONG_AGO_NS + 1))
        return data

    monkeypatch.setattr("aioembed.index.folder.read_file", read_and_rewrite)
    await index.sync(album, model)
    monkeypatch.setattr("aioembed.index.folder.read_file", read_file)

    assert _figures(await index.sync(album, model)) == (1, 3, 0, 0)
    nearest = (await index.search_item(album / "a.png", model, k=1))[0]
    assert (nearest.key, round(nearest.similarity, 4)) == (str(album / "a.png"), 1)


async def test_pictures_that_fail_are_kept_with_their_error_and_not_tried_again(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    broken, page = album / "broken.png", album / "page.jpg"
    broken.write_bytes((album / "a.png").read_bytes()[:60])
    page.write_text("<html></html>")
    for path in (broken, page):
        os.utime(path, ns=(0, LONG_AGO_NS))
    assert _figures(await index.sync(album, model)) == (4, 0, 2, 0)
    errors = await index.errors(album)
    assert set(errors) == {str(broken), str(page)}
    assert "markup" in errors[str(page)]

    before = model.statistics().submitted
    assert _figures(await index.sync(album, model)) == (0, 4, 2, 0)
    assert model.statistics().submitted == before

    draw(broken, seed=80)
    os.utime(broken, ns=(0, LONG_AGO_NS + 1))
    assert _figures(await index.sync(album, model)) == (1, 4, 1, 0)


async def test_a_picture_that_breaks_loses_its_old_vector(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    (album / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert (await index.sync(album, model)).failed == 1
    assert not await index.contains(str(album / "a.png"))


async def test_an_unreadable_folder_is_tried_again_and_keeps_its_pictures(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root can read everything, so the system's refusal is simulated."""
    await index.sync(album, model)
    scandir, refused = os.scandir, str(album / "trip")

    def refusing(path: str) -> object:
        if path == refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = await index.sync(album, model)
    assert (report.unchanged, report.failed, report.removed) == (3, 1, 0)
    assert await index.errors(album) == {refused: "Permission denied"}
    assert await index.contains(str(album / "trip" / "d.png"))
    monkeypatch.setattr(os, "scandir", scandir)
    assert _figures(await index.sync(album, model)) == (0, 4, 0, 0)
    assert await index.errors(album) == {}


@pytest.mark.parametrize("empty", [True, False], ids=["empty folder", "other files in it"])
async def test_an_unmounted_drive_removes_nothing_without_prune(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, empty: bool
) -> None:
    await index.sync(album, model)
    _unmount(album)
    if not empty:
        (album / "README.txt").touch()
    report = await index.sync(album, model)
    assert (report.missing, report.removed, await index.count()) == (4, 0, 4)
    report = await index.sync(album, model, prune=True)
    assert (report.missing, report.removed, await index.count()) == (0, 4, 0)


async def test_more_than_half_of_the_pictures_gone_are_not_removed(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    for name in ("a.png", "b.png", "c.jpg"):
        (album / name).rename(album / f"{name}.bak")
    report = await index.sync(album, model)
    assert (report.missing, report.removed, report.unchanged) == (3, 0, 1)
    (album / "c.jpg.bak").rename(album / "c.jpg")
    assert (await index.sync(album, model)).removed == 2


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_folder_that_is_there_but_empty_keeps_its_pictures(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, depth: int
) -> None:
    mount = album / "trip"
    (mount / "day").mkdir()
    for seed in range(20):
        draw(album / f"more-{seed}.png", seed + 100)
    draw(mount / "day" / "e.png", 130)
    await index.sync(album, model)
    for path in [mount / "d.png", *mount.glob("day/*")]:
        path.unlink()
    if depth == 1:
        (mount / "day").rmdir()
    report = await index.sync(album, model)
    assert (report.missing, report.removed) == (2, 0)
    (mount / "day").rmdir() if depth == 2 else None
    mount.rmdir()
    assert (await index.sync(album, model)).removed == 2, "a folder that was deleted"


async def test_links_that_lead_nowhere_remove_nothing(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, tmp_path: Path
) -> None:
    drive = tmp_path / "drive"
    (drive / "holiday").mkdir(parents=True)
    draw(drive / "holiday" / "e.png", 140)
    draw(drive / "f.png", 141)
    (album / "holiday").symlink_to(drive / "holiday", target_is_directory=True)
    (album / "f.png").symlink_to(drive / "f.png")
    assert _figures(await index.sync(album, model)) == (6, 0, 0, 0)
    drive.rename(tmp_path / "unplugged")
    report = await index.sync(album, model)
    assert (report.unchanged, report.missing, report.removed) == (4, 2, 0)
    (tmp_path / "unplugged").rename(drive)
    assert _figures(await index.sync(album, model)) == (0, 6, 0, 0)


async def test_pictures_that_vanish_during_a_sync_fail_alone(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    def vanish(report: SyncReport) -> None:
        if not report.is_scanning:
            (album / "b.png").unlink(missing_ok=True)
            shutil.rmtree(album / "trip", ignore_errors=True)

    report = await index.sync(album, model, on_progress=vanish)
    assert _figures(report) == (2, 0, 2, 0)
    errors = await index.errors(album)
    assert set(errors) == {str(album / "b.png"), str(album / "trip" / "d.png")}
    assert "No such file" in errors[str(album / "b.png")]
    assert _figures(await index.sync(album, model)) == (0, 2, 0, 0)
    assert await index.errors(album) == {}


async def test_a_drive_that_goes_away_during_a_sync_takes_no_vectors_along(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    for name in ("a.png", "b.png", "c.jpg"):
        os.utime(album / name, ns=(0, LONG_AGO_NS + 1))

    def unplug(report: SyncReport) -> None:
        if not report.is_scanning and album.exists():
            album.rename(album.with_name("unplugged"))

    assert (await index.sync(album, model, on_progress=unplug)).failed == 3
    os.mkdir(album)  # noqa: PTH102
    report = await index.sync(album, model)
    assert (report.missing, report.removed, await index.count()) == (4, 0, 4)
    os.rmdir(album)  # noqa: PTH106
    album.with_name("unplugged").rename(album)
    assert _figures(await index.sync(album, model)) == (0, 4, 0, 0)


async def test_links_in_a_circle_are_walked_once(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    (album / "trip" / "up").symlink_to(album, target_is_directory=True)
    (album / "aaa").symlink_to(album / "trip", target_is_directory=True)
    (album / "itself.png").symlink_to(album / "itself.png")
    (album / "dangling.png").symlink_to(album / "nothing.png")
    report = await index.sync(album, model)
    assert report.embedded == 4
    assert str(album / "trip" / "d.png") in await index.keys()
    assert set(await index.errors(album)) == {str(album / "itself.png")}


async def test_thousands_of_files_that_are_not_pictures_are_passed_over(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    (album / "texts").mkdir()
    for number in range(2_000):
        (album / "texts" / f"{number}.txt").touch()
    report = await index.sync(album, model)
    assert (report.scanned, report.ignored, report.embedded) == (2_005, 2_001, 4)


async def test_pipes_and_names_that_are_not_text_fail_alone(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    os.mkfifo(album / "pipe.png")
    shutil.copy(album / "a.png", os.fsdecode(os.fsencode(album) + b"/\xff.png"))
    report = await index.sync(album, model)
    assert (report.embedded, report.failed) == (4, 2)
    errors = await index.errors(album)
    assert "a pipe" in errors[str(album / "pipe.png")]
    assert errors[str(album / "�.png")] == "its name is not UTF-8"


async def test_a_missing_folder_removes_nothing(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    os.rename(album, album.with_name("elsewhere"))  # noqa: PTH104
    with pytest.raises(FileReadFailed, match="album"):
        await index.sync(album, model)
    assert await index.count() == 4


async def test_another_folder_of_the_same_index_is_left_alone(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, tmp_path: Path
) -> None:
    other = tmp_path / "album-2"
    other.mkdir()
    draw(other / "z.png", seed=90)
    await index.sync(album, model)
    assert _figures(await index.sync(other, model)) == (1, 0, 0, 0)
    assert _figures(await index.sync(album / "trip", model)) == (0, 1, 0, 0)
    assert await index.count() == 5


async def test_a_cancelled_sync_goes_on_where_it_was(
    index_file: Path, model: ImageEmbeddings, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(60):
        draw(folder / f"{seed}.png", seed)
    told = 0
    async with EmbeddingIndex(index_file) as index:
        with anyio.CancelScope() as scope:

            def stop_after_twenty(report: SyncReport) -> None:
                nonlocal told
                told = report.embedded
                if told >= 20:
                    scope.cancel()

            await index.sync(folder, model, on_progress=stop_after_twenty)
        assert scope.cancelled_caught
        kept = await index.count()
        assert 20 <= told <= kept < 60
    async with EmbeddingIndex(index_file) as index:
        assert _figures(await index.sync(folder, model)) == (60 - kept, kept, 0, 0)


async def test_progress_never_goes_back(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    told: list[SyncReport] = []
    final = await index.sync(album, model, on_progress=told.append)
    assert [report.done for report in told] == sorted(report.done for report in told)
    assert told[0].is_scanning
    assert told[-1] == final


async def test_a_model_of_another_space_is_refused(index_file: Path, album: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1.0] * 512)
        async with ImageEmbeddings(TINY_IMAGE) as model:
            with pytest.raises(IncompatibleSpaces, match="another file"):
                await index.sync(album, model)
            with pytest.raises(IncompatibleSpaces, match="do not compare"):
                await index.search_item(Image.new("RGB", (64, 64), "teal"), model)
        assert await index.keys() == ["x"]


async def test_a_renamed_folder_is_known_by_its_content(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    await index.sync(album, model)
    before = model.statistics().submitted
    (album / "trip").rename(album / "journey")
    (album / "a.png").rename(album / "renamed.png")
    report = await index.sync(album, model)
    assert (report.moved, report.unchanged, report.removed, report.missing) == (2, 2, 0, 0)

    renamed = album.with_name("photos")
    shutil.move(album, renamed)
    report = await index.sync(renamed, model)
    assert (report.moved, report.embedded) == (4, 0)
    assert model.statistics().submitted == before
    assert await index.keys() == [
        str(renamed / name) for name in ("b.png", "c.jpg", "journey/d.png", "renamed.png")
    ]


async def test_a_copy_is_not_embedded_and_takes_nothing_from_the_original(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, tmp_path: Path
) -> None:
    await index.sync(album, model)
    shutil.copytree(album, tmp_path / "backup")
    shutil.move(album, tmp_path / "unplugged")
    report = await index.sync(tmp_path / "backup", model)
    assert (report.moved, report.embedded, await index.count()) == (4, 0, 8)


async def test_hidden_files_trash_and_what_is_excluded_are_left_out(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    (album / "._a.png").write_bytes(b"\0\5\26\7 Mac OS X")
    for folder in (".Trash-1000/files", "@eaDir/a.png", "#recycle", "trip/.thumbnails"):
        (album / folder).mkdir(parents=True)
        shutil.copy(album / "a.png", album / folder / "copy.png")
    report = await index.sync(album, model)
    assert (report.total, report.failed, report.embedded) == (4, 0, 4)

    report = await index.sync(album, model, exclude=["trip/*", "b.*"])
    assert (report.unchanged, report.removed, report.missing) == (2, 2, 0)
    assert (await index.sync(album, model)).total == 2, "what was excluded is remembered"
    assert (await index.info()).folders == {str(album): ("trip/*", "b.*")}
    assert (await index.sync(album, model, exclude=[])).total == 4


async def test_formats_that_are_not_read_are_counted(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    for name in ("1.JXL", "2.jxl", "3.CR2"):
        (album / name).touch()
    report = await index.sync(album, model)
    assert dict(report.unsupported) == {"jxl": 2, "cr2": 1}
    assert report.ignored == 4


async def test_a_folder_can_be_forgotten_whether_it_is_there_or_not(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path, tmp_path: Path
) -> None:
    await index.sync(album, model)
    shutil.copytree(album, tmp_path / "album-2")
    await index.sync(tmp_path / "album-2", model)
    shutil.rmtree(album)
    assert await index.forget(album / "trip") == 1
    assert await index.forget(album) == 3
    assert await index.forget(album) == 0
    assert await index.count() == 4
    assert set((await index.info()).folders) == {str(tmp_path / "album-2")}


async def test_a_folder_reached_by_a_link_is_indexed_once(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    link = album.with_name("link")
    link.symlink_to(album, target_is_directory=True)
    await index.sync(album, model)
    assert _figures(await index.sync(link, model)) == (0, 4, 0, 0)
    assert await index.count() == 4


async def test_the_index_remembers_its_model(index_file: Path, album: Path) -> None:
    async with EmbeddingIndex(index_file) as index, ImageEmbeddings(TINY_IMAGE) as model:
        assert (await index.info()).model is None
        await index.sync(album, model)
        spec, space = model.spec, model.space
    async with EmbeddingIndex(index_file) as index:
        info = await index.info()
        assert (info.model, info.space) == (spec, space)
        assert (info.count, info.text_model, info.path) == (4, None, index_file)


async def test_a_picture_that_is_indexed_has_its_vector_until_it_changes(
    index: EmbeddingIndex, model: ImageEmbeddings, album: Path
) -> None:
    link = album.with_name("link.png")
    link.symlink_to(album / "a.png")
    assert await index.stored_vector(link) is None
    await index.sync(album, model)
    stored, wanted = await index.stored_vector(link), await index.get(str(album / "a.png"))
    assert stored is not None
    assert wanted is not None
    assert np.array_equal(stored, wanted)
    draw(album / "a.png", seed=200)
    os.utime(album / "a.png", ns=(0, LONG_AGO_NS + 1))
    assert await index.stored_vector(link) is None
