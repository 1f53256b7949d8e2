"""`aioembed demo`: states on stderr as they happen, the tables on stdout."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from aioembed.testing.photographs import near_duplicates, photograph_files, photographs

from ..programs import TINY_IMAGE_PROGRAM
from .conftest import Invoke, draw

_NEAREST = "64 of 64 near-duplicates are nearest to the picture they were made from."


def test_it_shows_each_state_and_finds_every_near_duplicate(invoke: Invoke) -> None:
    result = invoke("demo")
    assert result.exit_code == 0
    states = [line.split(" ms  ", 1)[1] for line in result.stderr.splitlines()]
    assert states[:3] == ["idle", "loading", "ready"]
    assert all(state.startswith("generating -> ready after") for state in states[3:-2])
    assert "near-duplicates together" in states[-2]
    assert states[-1] == "closed"
    similar = [line.split() for line in result.stdout.splitlines()]
    assert ["grass", "gravel"] in [words[:2] for words in similar]
    assert ["gravel", "grass"] in [words[:2] for words in similar]
    assert _NEAREST in result.stdout
    assert max(map(len, (result.stdout + result.stderr).splitlines())) <= 80


def test_the_photographs_are_few_small_and_their_sources_named() -> None:
    files = photograph_files()
    assert sum(file.stat().st_size for file in files.values()) < 500_000
    sources = next(iter(files.values())).with_name("SOURCES.md").read_text(encoding="utf-8")
    rows = [line for line in sources.splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(f.name for f in files.values())
    assert all(row.endswith(("| CC0 |", "| public domain |")) for row in rows)


def test_a_near_duplicate_is_another_picture_of_the_same_mode() -> None:
    cat = photographs()["cat"]
    for change, picture in near_duplicates(cat).items():
        assert picture.mode == "RGB"
        assert picture.tobytes() != cat.tobytes(), change


def test_a_folder_of_pictures_is_shown_and_a_broken_one_named(
    invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "holidays").mkdir()
    for seed, name in enumerate(("red.png", "holidays/blue.jpg", "green.png")):
        draw(seed).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = invoke("demo", tmp_path, "--model", TINY_IMAGE_PROGRAM)
    assert result.exit_code == 1
    assert "broken.png: not an image" in result.stderr
    named = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert named[:4] == ["picture", "green.png", "blue.jpg", "red.png"]
    assert "of 24 near-duplicates" in result.stdout


def test_of_a_large_folder_the_first_pictures_are_shown(invoke: Invoke, tmp_path: Path) -> None:
    for seed in range(34):
        draw(seed).resize((8, 8)).save(tmp_path / f"{seed:02}.png")
    result = invoke("demo", tmp_path, "--model", TINY_IMAGE_PROGRAM)
    assert result.exit_code == 0
    assert "took the first 32 pictures, and left 2 out" in result.stderr
    assert "of 256 near-duplicates" in result.stdout


def test_a_folder_with_too_few_pictures_is_a_usage_error(invoke: Invoke, tmp_path: Path) -> None:
    draw(0).save(tmp_path / "one.png")
    result = invoke("demo", tmp_path)
    assert result.exit_code == 2
    assert "at least two pictures" in result.stderr
    result = invoke("demo", tmp_path / "one.png")
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr


def test_it_keeps_the_pictures_where_asked(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert invoke("demo", "--save", folder, "--model", TINY_IMAGE_PROGRAM).exit_code == 0
    assert len(list(folder.iterdir())) == 8 + 64
    with Image.open(folder / "cat-mirrored.png") as picture:
        assert picture.size == photographs()["cat"].size


def test_it_shows_a_load_that_fails(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_text("<html>")
    result = invoke("demo", "--model", path)
    assert result.exit_code == 3
    assert "failed" in result.stderr
    assert result.stdout == ""


def test_a_folder_that_cannot_be_made_is_an_output_error(invoke: Invoke, picture: Path) -> None:
    result = invoke("demo", "--save", picture)
    assert result.exit_code == 5
    assert str(picture) in result.stderr
