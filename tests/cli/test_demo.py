"""`aioembed demo`: states on stderr as they happen, the table on stdout."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .conftest import Invoke


def test_it_shows_each_state_and_finds_every_near_duplicate(invoke: Invoke) -> None:
    result = invoke("demo")
    assert result.exit_code == 0
    states = [line.split(" ms  ", 1)[1] for line in result.stderr.splitlines()]
    assert states[:3] == ["idle", "loading", "ready"]
    assert all(state.startswith("generating -> ready after") for state in states[3:-2])
    assert "near-duplicates together" in states[-2]
    assert states[-1] == "closed"
    assert "48 of 48 near-duplicates are nearest" in result.stdout
    assert max(map(len, (result.stdout + result.stderr).splitlines())) <= 80


def test_it_keeps_the_drawn_pictures_where_asked(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert invoke("demo", "--save", folder).exit_code == 0
    assert len(list(folder.iterdir())) == 6 + 48
    with Image.open(folder / "coast-jpeg.png") as picture:
        assert picture.size == (320, 240)


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
