"""A wrong input is one line on stderr and an exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Invoke, draw


def missing(folder: Path) -> Path:
    return folder / "missing.png"


def directory(folder: Path) -> Path:
    return folder


def empty(folder: Path) -> Path:
    path = folder / "empty.png"
    path.touch()
    return path


def not_an_image(folder: Path) -> Path:
    path = folder / "notes.png"
    path.write_text("Dear diary")
    return path


def truncated(folder: Path) -> Path:
    path = folder / "cut.png"
    draw(0).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    return path


def fifo(folder: Path) -> Path:
    path = folder / "pipe.png"
    os.mkfifo(path)
    return path


def unknown_scheme(folder: Path) -> str:
    return "ftp://example.org/cat.png"


def broken_data_uri(folder: Path) -> str:
    return "data:image/png;base64,@@@@"


def dead_port(folder: Path) -> str:
    return "http://127.0.0.1:9/cat.png"


CASES: list[tuple[Callable[[Path], object], str]] = [
    (missing, "FileReadFailed"),
    (directory, "FileReadFailed"),
    (fifo, "FileReadFailed"),
    (empty, "ImageDecodeError"),
    (not_an_image, "ImageDecodeError"),
    (truncated, "ImageDecodeError"),
    (unknown_scheme, "InvalidUserInput"),
    (broken_data_uri, "ImageDecodeError"),
    (dead_port, "ImageFetchFailed"),
]


@pytest.mark.parametrize(("make", "error"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_a_bad_image_is_named_on_one_line(
    invoke: Invoke, tmp_path: Path, make: Callable[[Path], object], error: str
) -> None:
    argument = str(make(tmp_path))
    result = invoke("embed", argument)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["results"][0]["error"]["type"] == error
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("aioembed: error: ")
    assert argument[:30] in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_says_so(invoke: Invoke, picture: Path) -> None:
    picture.chmod(0)
    result = invoke("embed", picture)
    assert result.exit_code == 1
    assert "ermission" in result.stderr


def test_debug_shows_the_traceback(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("embed", missing(tmp_path), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_an_unknown_model_suggests_the_nearest_name(invoke: Invoke, picture: Path) -> None:
    result = invoke("embed", picture, "--model", "efficientnetlite0")
    assert result.exit_code == 3
    assert "did you mean efficientnet-lite0?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 4096, None])
def test_a_file_that_is_not_a_model_is_the_models_fault(
    invoke: Invoke, picture: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.pte"
    if content is not None:
        path.write_bytes(content)
    result = invoke("embed", picture, "--model", path)
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "model.pte" in result.stderr


def test_a_repository_of_the_hub_is_not_a_model(invoke: Invoke, picture: Path) -> None:
    result = invoke("embed", picture, "--model", "openai/clip-vit-base-patch32")
    assert result.exit_code == 3
    assert "check the path: a model is a name" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--allow-host", "https://example.org/", "is not a host"),
        ("--cors-origin", "example.org", "is not an origin"),
        ("--cors-origin", "https://example.org/app", "is not an origin"),
        ("--log-level", "loud", "is not one of"),
    ],
)
def test_an_option_of_serve_that_cannot_work_is_refused(
    invoke: Invoke, option: str, value: str, words: str
) -> None:
    pytest.importorskip("granian")
    pytest.importorskip("fastapi")
    result = invoke("serve", "--port", 0, option, value)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed",),
        ("embed", "a.png", "--format", "yaml"),
        ("embed", "a.png", "--threads", "0"),
        ("embed", "a.png", "--model", "clip-vit-base-patch32-text"),
        ("similarity", "a.png"),
        ("frobnicate",),
    ],
)
def test_a_wrong_call_exits_with_2(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr
