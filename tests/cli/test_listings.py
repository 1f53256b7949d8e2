"""`aioembed models`, `doctor`, `--version` and `--help`."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_doctor_finds_a_working_installation(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path))
    result = invoke("doctor", "--format", "json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert "XnnpackBackend" in checks["runtime"]["found"]
    assert "threads" in checks["threads"]["found"]
    assert str(tmp_path) in checks["cache folder"]["found"]
    assert checks["embedding"]["verdict"] == "ok"


def test_doctor_says_in_words_what_is_broken(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("AIOEMBED_CACHE", str(in_the_way / "cache"))
    result = invoke("doctor")
    assert result.exit_code == 6
    assert "cannot be written" in " ".join(result.stdout.split())
    assert "AIOEMBED_CACHE" in result.stdout
    assert result.stderr.splitlines() == ["aioembed: broken: cache folder"]


def test_doctor_notes_settings_without_showing_their_values(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("doctor")
    assert "HF_TOKEN" in result.stdout
    assert "secret-token" not in result.stdout
    assert "keeps models from being downloaded" in " ".join(result.stdout.split())


def test_help_tells_the_exit_codes(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Exit codes:" in result.stdout


def test_every_command_has_help(invoke: Invoke) -> None:
    for command in ("demo", "embed", "similarity", "models", "doctor"):
        result = invoke(command, "--help")
        assert result.exit_code == 0
        assert "--debug" in result.stdout
