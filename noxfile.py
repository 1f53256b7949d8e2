"""The checks of this project: `nox -l` lists them, `nox -s lint types` runs two.

`.ci/run` runs `lint`, `types` and `docs` with `--no-venv` in its own environment, and `wheel`,
`sanitizers` and `no_extras` as they are. The other Pythons and each extra alone are for before a
release: they take minutes each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]

PYTHONS = ["3.11", "3.12", "3.13"]
EXTRAS = {
    "cli": ["tests/cli", "tests/download/test_cli.py"],
    "text": ["tests/text"],
    "server": ["tests/server"],
    "textual": ["tests/tui"],
    "ray": ["tests/integrations"],
    "export": ["tests/export", "-m", "export"],
}
NEED_NO_EXTRAS = [  # in any session, and are in `make test`
    *("runtime", "images", "download", "docs", "index", "handle/test_[!fl]*.py"),
    *(f"test_{name}.py" for name in ("batcher", "http", "observers", "packed", "pool", "tasks")),
]
LOWEST_EXTRAS = ["cli", "text", "textual"]
LOWEST_TESTS = ["tests/cli", "tests/index", "tests/text", "tests/tui/test_status.py"]
EVERYTHING = "cli,text,server,textual,ray,export"
_SANITIZED = [
    "tests/runtime",
    "--deselect=tests/runtime/test_memory.py",  # it reads RSS
    # UBSan looks at memory through pipes, for which no descriptor is left there
    "--deselect=tests/runtime/test_completion.py::test_no_descriptor_left_is_a_typed_error",
]


def _wheel(session: nox.Session) -> Path:
    """Build the wheel for the session's Python, unless nothing has changed; return its path.

    AIOEMBED_WHEEL names one that is there already; AIOEMBED_BUILD is where it was built.
    """
    if built := os.environ.get("AIOEMBED_WHEEL"):
        return Path(built).resolve()
    tell = "import sys; print(*sys.version_info[:2], sep='.')"
    version = str(session.run("python", "-c", tell, silent=True)).strip()
    wheels = Path("build", f"wheels-{version}")
    build = f".venv-build-{version}"
    command = ["make", "wheel", f"PYTHON=python{version}", f"BUILD={build}", f"WHEELS={wheels}"]
    session.run(*command, external=True)
    return next(wheels.glob("*.whl")).resolve()


def _install(session: nox.Session, extras: str = "", groups: tuple[str, ...] = ("test",)) -> None:
    """Install the wheel with its extras, and dependency groups."""
    wheel = f"{_wheel(session)}[{extras}]" if extras else str(_wheel(session))
    session.install("--upgrade", "pip")
    chosen = [option for group in groups for option in ("--group", group)]
    session.install("--force-reinstall", "--no-deps", wheel.partition("[")[0])
    session.install(wheel, *chosen)
    session.run("python", "-m", "pip", "check")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, with the extras that need no torch."""
    _install(session, "cli,text,server,textual", ("test", "server-test", "examples"))
    session.run("python", "-m", "pytest", "-n", "logical", "--maxprocesses=4", *session.posargs)


@nox.session
def no_extras(session: nox.Session) -> None:
    """The base install: tests that need an extra are skipped, and the handle works."""
    _install(session)
    elsewhere = [f"--ignore-glob=tests/{name}" for name in NEED_NO_EXTRAS]
    session.run("python", "-m", "pytest", "-n", "2", *(session.posargs or ["tests", *elsewhere]))


@nox.session
def lowest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows, with the tests that use them most."""
    session.install("--upgrade", "pip", "uv")
    versions = Path(session.create_tmp(), "lowest.txt").resolve()
    extras = [f"--extra={name}" for name in LOWEST_EXTRAS]
    session.run(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        *("--resolution", "lowest-direct", "pyproject.toml", *extras),
        *("--output-file", str(versions)),
    )
    session.install("--force-reinstall", "--no-deps", str(_wheel(session)))
    session.install("-r", str(versions), "-c", str(versions), "--group", "test")
    session.run("python", "-m", "pip", "check")
    # With anyio 4.11 the socket of a cancelled connection is sometimes left to the collector.
    allowed = ("-W", "default::pytest.PytestUnraisableExceptionWarning")
    session.run("python", "-m", "pytest", "-n", "2", *allowed, *(session.posargs or LOWEST_TESTS))


@nox.session
@nox.parametrize("name", list(EXTRAS))
def extra(session: nox.Session, name: str) -> None:
    """One extra alone: it imports, and its tests pass."""
    groups = ("test", "server-test") if name == "server" else ("test",)
    _install(session, name, groups)
    session.run("python", "-m", "pytest", "-n", "2", *EXTRAS[name], *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and layers."""
    if session.venv_backend != "none":
        _install(session, EVERYTHING, ("lint",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "src"})


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy over everything, pyright over the public types and the typing tests."""
    if session.venv_backend != "none":
        _install(
            session, EVERYTHING, ("lint", "test", "server-test", "examples", "examples-ray", "docs")
        )
    session.run("mypy")
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True)
    command = ["pyright", "--pythonpath", str(python).strip()]
    session.run(*command, "tests/typing")
    _verify_public_types(session, command)


def _verify_public_types(session: nox.Session, command: list[str]) -> None:
    """Fail if pyright cannot infer the type of a public symbol.

    The modules of `aioembed.export` and `aioembed.cli` are public as commands, not as Python.
    """
    path = os.pathsep.join([*(session.bin_paths or []), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as elsewhere:
        ended = subprocess.run(
            [*command, "--verifytypes", "aioembed", "--ignoreexternal", "--outputjson"],
            capture_output=True,
            check=False,
            cwd=elsewhere,
            env=os.environ | {"PATH": path},
        )
    symbols = json.loads(ended.stdout)["typeCompleteness"]["symbols"]
    apart = ("aioembed.export", "aioembed.cli")
    public = [one for one in symbols if one["isExported"] and not one["name"].startswith(apart)]
    unclear = [one["name"] for one in public if one["isTypeAmbiguous"] or not one["isTypeKnown"]]
    session.log(f"{len(public) - len(unclear)} of {len(public)} public symbols have known types")
    if unclear or not public:
        session.error("types are not known of: " + ", ".join(unclear))


@nox.session
def docs(session: nox.Session) -> None:
    """The pages are built strictly, and their links are checked."""
    if session.venv_backend != "none":
        _install(session, EVERYTHING, ("test", "docs"))
    session.run(
        *("mkdocs", "build", "--quiet", "--strict", "--config-file", "docs/site/mkdocs.yml"),
        env={"NO_MKDOCS_2_WARNING": "1"},
    )
    session.run("python", "docs/site/check_offline.py", "build/docs")


@nox.session(python=f"{sys.version_info.major}.{sys.version_info.minor}")
def sanitizers(session: nox.Session) -> None:
    """The native module's tests under AddressSanitizer and UBSan."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tools = Path(os.environ.get("AIOEMBED_BUILD", f".venv-build-{version}"), "bin").resolve()
    _install(session)
    settings = (
        "cmake.define.AIOEMBED_SANITIZE=ON", "cmake.build-type=Debug", "build-dir=build/sanitizers"
    )  # fmt: skip
    session.run(
        *(str(tools / "python"), "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps"),
        *(f"--config-settings={setting}" for setting in settings),
        *("--wheel-dir", "build/wheels-sanitizers"),
        env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        external=True,
    )
    wheel = next(Path("build/wheels-sanitizers").glob("*.whl"))
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.run("bash", ".ci/sanitized", "python", "-m", "pytest", *_SANITIZED, external=True)


@nox.session
def wheel(session: nox.Session) -> None:
    """Tag and check the wheel as it is published, print its size, and run it alone."""
    built = _wheel(session)
    session.install("--upgrade", "pip")
    session.install("--group", "wheel")
    session.run("auditwheel", "repair", "--wheel-dir", "dist", str(built))
    (repaired,) = Path("dist").glob(f"*-{built.name.split('-')[2]}-*.whl")
    session.log(f"{repaired.name}: {repaired.stat().st_size / 1e6:.1f} MB")
    session.install(f"{repaired}[cli]")
    session.run("aioembed", "doctor")
