"""The pages agree with the code: the drawn states, the errors, the reference, the scripts."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import aioembed
from aioembed import LEGAL_MOVES, ModelState, Status, errors
from aioembed.errors import AioembedError

from .pages import PAGES, ROOT

_DOCS = ROOT / "docs"


def _program(name: str) -> ModuleType:
    """Import one of the programs that build the site."""
    spec = importlib.util.spec_from_file_location(name, _DOCS / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def diagram() -> ModuleType:
    """The program that draws the states."""
    return _program("states_diagram")


def test_the_diagram_in_the_repository_is_the_one_that_is_drawn(diagram: ModuleType) -> None:
    assert (_DOCS / "assets" / "states.svg").read_text(encoding="utf-8") == diagram.draw()


def test_the_diagram_shows_exactly_the_legal_moves(diagram: ModuleType) -> None:
    drawn = {(line.start, line.end) for line in diagram.lines()}
    drawn |= {(line.end, line.start) for line in diagram.lines() if line.both_ways}
    drawn |= {
        (start, end) for end in diagram.from_anywhere() for start in Status if start is not end
    }
    assert drawn == {(start, end) for start in Status for end in LEGAL_MOVES[start]}


def test_every_box_and_line_of_the_diagram_is_inside(diagram: ModuleType) -> None:
    picture = diagram.draw()
    assert set(diagram.CENTRES) == set(Status)
    assert picture.count("<text") == len(Status)
    arrows = picture.count('marker-end="url(#head)"') + picture.count('marker-start="url(#head)"')
    into_closed = len(Status) - 1
    moves = sum(map(len, LEGAL_MOVES.values()))
    assert arrows == moves - into_closed + 1


def test_the_page_of_states_has_every_state_and_every_field() -> None:
    page = (_DOCS / "states.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    assert rows == {*Status, *ModelState.model_fields, "is_ready", "is_generating"}


def _errors() -> list[type[AioembedError]]:
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    return [one for one in found if issubclass(one, AioembedError)]


def _is_leaf(error: type[AioembedError]) -> bool:
    return not error.__subclasses__()


def test_every_error_has_a_row_with_its_code() -> None:
    page = (_DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    codes = {name: code for code, name, _, _ in rows}
    assert {one.__name__ for one in _errors() if _is_leaf(one)} <= set(codes)
    assert len(codes) == len(rows)
    own = {
        "BatchItemFailed": "the item's",
        "ExecutorchError": "ExecuTorch's, 1-50",
        "ProgramLost": "ExecuTorch's, 1-50",
    }
    expected = {name: own.get(name, str(getattr(errors, name).code)) for name in codes}
    assert codes == expected


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: list[tuple[int, str]] = [
        (len(indent) // 4, name)
        for indent, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)\b", errors.__doc__, re.MULTILINE)
        if hasattr(errors, name)
    ]
    path: list[str] = []
    for depth, name in drawn:
        path[depth:] = [name]
        if depth:
            assert getattr(errors, path[depth - 1]) in getattr(errors, name).__bases__
    assert {name for _, name in drawn} == {one.__name__ for one in _errors()}


def test_the_reference_has_every_public_name() -> None:
    page = (_DOCS / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: aioembed\.(\w+)$", page, re.MULTILINE)
    public = set(aioembed.__all__)
    assert public == {"errors"} | {
        name
        for name, value in vars(aioembed).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert len(shown) == len(set(shown))
    assert set(shown) | {"errors", "AioembedError"} == public


def test_getting_started_shows_the_last_checks_of_doctor() -> None:
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "aioembed", "doctor", "--format", "json"]
    found = subprocess.run(command, capture_output=True, check=False).stdout
    page = (_DOCS / "getting-started.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ok  (\S+(?: \S+)*)  ", page, re.MULTILINE)
    names = [check["name"] for check in json.loads(found)]
    assert shown == names[names.index("runtime") :]


def test_the_page_of_the_command_shows_what_the_demo_prints() -> None:
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "aioembed", "demo"]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    page = (_DOCS / "command.md").read_text(encoding="utf-8")
    row = r"(?m)^([a-z]+) .*? (-?\d\.\d\d)(?: +(-?\d\.\d\d))?$"  # in which CPUs differ a little
    shown, found = re.findall(row, page), re.findall(row, printed)
    assert [name for name, *_ in shown] == [name for name, *_ in found]
    assert len(found) == 16
    for (_, *before), (_, *now) in zip(shown, found, strict=True):
        assert [float(value or 0) for value in now] == pytest.approx(
            [float(value or 0) for value in before], abs=0.03
        )


def test_every_script_has_a_section_on_the_page_about_performance() -> None:
    page = (_DOCS / "performance.md").read_text(encoding="utf-8")
    sources = {path.stem: path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    helpers = {
        name
        for name in sources
        for other in set(sources) - {name}
        if re.search(
            rf"^(?:from|import) {name}\b|[\"']{name}\.py[\"']", sources[other], re.MULTILINE
        )
    }
    scripts = set(sources) - helpers
    assert scripts <= set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    for script in scripts:
        assert f"python benchmarks/{script}.py" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:benchmarks|examples)/\w+\.py", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize(
    ("element", "fault"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="https://example.org/">', None),
        ('<a href="missing.html">', "missing.html is not there"),
        ('<a href="other.html#elsewhere">', "other.html#elsewhere has no such anchor"),
        ('<a href="#elsewhere">', "#elsewhere has no such anchor"),
        ('<img src="missing.png">', "missing.png is not there"),
        ('<script src="https://cdn.example.org/a.js">', "loads https://cdn.example.org/a.js"),
        ('<link rel="stylesheet" href="//fonts.example.org/a">', "loads //fonts.example.org/a"),
    ],
)
def test_the_check_of_the_built_pages_finds(
    tmp_path: Path, element: str, fault: str | None
) -> None:
    (tmp_path / "index.html").write_text(element, encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="there">', encoding="utf-8")
    faults = _program("check_offline").find_faults(tmp_path)
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


def test_the_check_of_the_built_pages_looks_into_styles(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face { src: url(https://example.org/f) }", "utf-8")
    assert _program("check_offline").find_faults(tmp_path)
