"""`--preprocessing`, on each command that takes a model's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Invoke

PLAIN = Path(__file__).resolve().parents[1] / "programs" / "plain_nchw.pte"


def test_a_program_without_preprocessing_works_with_the_option(
    invoke: Invoke, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "cache"))
    model = ("--model", PLAIN)
    refused = invoke("embed", pictures[0], *model)
    assert refused.exit_code == 3
    assert "--preprocessing" in refused.stderr
    said = (*model, "--preprocessing", "imagenet")
    embedded = json.loads(invoke("embed", pictures[0], *said).stdout)
    assert embedded["dim"] == 16
    compared = json.loads(invoke("similarity", *pictures, *said, "--format", "json").stdout)
    assert compared["space_id"] == embedded["space_id"]
    index = ("--index", tmp_path / "index.db")
    assert invoke("index", tmp_path, *index, *said).exit_code == 0
    found = invoke("search", pictures[0], *index, *said, "--format", "paths")
    assert Path(found.stdout.splitlines()[0]).absolute() == pictures[0]
    outside = tmp_path / "outside"
    outside.mkdir()
    query = pictures[0].rename(outside / "query.png")
    assert invoke("search", query, *index, "--format", "paths").stdout  # both are remembered
    assert invoke("index", tmp_path, *index).exit_code == 0
    other = invoke("index", tmp_path, *index, *model, "--preprocessing", "rne")
    assert other.exit_code == 7


@pytest.mark.parametrize(
    "command", ["embed", "similarity", "index", "search", "demo", "describe", "verify", "serve"]
)
def test_each_command_has_the_option(invoke: Invoke, command: str) -> None:
    assert "--preprocessing" in invoke(command, "--help").stdout
