"""Every command line on the pages is one that exists."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from .pages import ROOT, command_lines

_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_WORDS = [(line, shlex.split(line.text, comments=True)) for line in command_lines()]


def _calls(program: str, *, first: str = "") -> list[ParameterSet]:
    """Return the lines that call a program, as its arguments up to a pipe or another command.

    Args:
        program: The first word.
        first: What the second word begins with, a regular expression.
    """
    found = []
    for line, all_words in _WORDS:
        words = list(itertools.dropwhile(_ASSIGNMENT.match, all_words))
        if words and words[0] == program and re.match(first, words[1]):
            ends = [place for place, word in enumerate(words) if word in {"|", "&&", ";", ">"}]
            found.append(pytest.param(words[1 : min(ends, default=None)], id=line.name))
    return found


@pytest.mark.parametrize("arguments", _calls("aioembed"))
def test_the_command_takes_these_arguments(arguments: list[str], folder: Path) -> None:
    typer = pytest.importorskip("typer")
    from aioembed.cli.app import app

    command = typer.main.get_command(app)
    context = command.make_context("aioembed", list(arguments))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("arguments", _calls("python", first="benchmarks/|examples/"))
def test_the_script_is_there_and_knows_these_options(arguments: list[str]) -> None:
    script, *options = arguments
    place = ROOT / script
    files = place.glob("*.py") if place.is_dir() else [place]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert source
    for option in options:
        if option.startswith("--"):
            assert f'"{option}"' in source


@pytest.mark.parametrize("arguments", _calls("make"))
def test_the_target_is_in_the_makefile(arguments: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {one for one in arguments if "=" not in one} <= set(targets)


def test_the_pages_show_commands_of_each_kind() -> None:
    assert all(_calls(program) for program in ("aioembed", "python", "make"))


def test_nothing_unknown_is_shown() -> None:
    known = {"aioembed", "python", "make", "pip", "curl", "tar", "serve"}
    programs = {_program(words) for _, words in _WORDS if words}
    assert programs <= known, programs - known


def _program(words: list[str]) -> str:
    return next(word for word in words if not _ASSIGNMENT.match(word))
