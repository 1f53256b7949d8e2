"""`aioembed models`, `--version` and `--help`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aioembed import MODELS
from aioembed.cli.app import app

from .conftest import Invoke


def test_models_lists_every_name(invoke: Invoke) -> None:
    result = invoke("models")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in MODELS)


def test_models_as_json_are_whole_specs(invoke: Invoke) -> None:
    specs = json.loads(invoke("models", "--format", "json").stdout)
    assert [spec["name"] for spec in specs] == list(MODELS)
    assert all(spec["source"] for spec in specs)


def test_help_lists_the_exit_codes(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Exit codes:" in result.stdout


def test_every_command_has_help(invoke: Invoke) -> None:
    for command in ("demo", "embed", "similarity", "models", "doctor"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert "--debug" in result.stdout


def test_no_summary_of_a_command_is_cut_off(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (("--help",), ("cache", "--help")):
        lines = invoke(*arguments).stdout.splitlines()
        assert not [line for line in lines[1:] if line.endswith("...")]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("aioembed ind", "index"),
        ("aioembed embed --model effi", "efficientnet-lite0"),
        ("aioembed serve --model effi", "efficientnet-lite0"),
        ("aioembed download effi", "efficientnet-lite0"),
        ("aioembed embed pic", "picture-0.png"),
        ("aioembed search --index pic", "picture-0.png"),
        ("aioembed embed --output pic", "picture-0.png"),
        ("aioembed describe pic", "picture-0.png"),
    ],
)
def test_a_shell_completes_commands_models_and_files(
    picture: Path, monkeypatch: pytest.MonkeyPatch, words: str, completed: str
) -> None:
    monkeypatch.chdir(picture.parent)
    environment = {
        "_AIOEMBED_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="aioembed")
    assert completed in result.stdout.splitlines()
