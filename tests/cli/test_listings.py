"""`aioembed models`, `--version` and `--help`."""

from __future__ import annotations

import json

import pytest

from aioembed import MODELS

from .conftest import Invoke


def test_models_lists_every_name(invoke: Invoke) -> None:
    result = invoke("models")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in MODELS)


def test_models_as_json_are_whole_specs(invoke: Invoke) -> None:
    specs = json.loads(invoke("models", "--format", "json").stdout)
    assert [spec["name"] for spec in specs] == list(MODELS)
    assert all(spec["source"] for spec in specs)


def test_help_tells_the_exit_codes(invoke: Invoke) -> None:
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
