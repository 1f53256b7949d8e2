"""Where files are kept for users with and without a home."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioembed import folders
from aioembed.errors import CacheUnwritable, InvalidModelSource
from aioembed.folders import cache_folder
from aioembed.models import local_file


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A system whose temporary folder is the test's own, and no setting of a cache."""
    for name in ("AIOEMBED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    folders._temporary_folder.cache_clear()
    yield tmp_path / "tmp"
    folders._temporary_folder.cache_clear()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry."""

    def unknown(_user: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
def test_a_user_without_home_gets_a_private_temporary_folder_and_a_warning(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cache_folder()
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder
    assert caplog.text.count("AIOEMBED_CACHE") == 1


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/self"])
def test_a_home_that_cannot_be_written_is_as_none(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    assert cache_folder().parent == temporary


def test_a_home_that_can_be_written_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)
    assert not cache_folder().exists()


@pytest.mark.usefixtures("nobody")
def test_a_temporary_folder_that_others_can_write_is_refused(temporary: Path) -> None:
    made = temporary / f"aioembed-{os.geteuid()}"
    made.mkdir()
    made.chmod(0o777)
    with pytest.raises(CacheUnwritable, match="AIOEMBED_CACHE"):
        cache_folder()


@pytest.mark.usefixtures("nobody")
def test_a_link_in_place_of_the_temporary_folder_is_refused(
    temporary: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (temporary / f"aioembed-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheUnwritable, match="not private"):
        cache_folder()


@pytest.mark.usefixtures("nobody")
def test_without_a_temporary_folder_the_error_names_the_variable(
    temporary: Path,
) -> None:
    temporary.rmdir()
    with pytest.raises(CacheUnwritable, match="AIOEMBED_CACHE"):
        cache_folder()


@pytest.mark.usefixtures("nobody")
def test_a_tilde_that_stands_for_nothing_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", "~/cache")
    with pytest.raises(CacheUnwritable, match="absolute path"):
        cache_folder()
    with pytest.raises(InvalidModelSource):
        local_file("~/model.pte")


@pytest.mark.usefixtures("nobody")
def test_the_variable_works_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_command_works_for_a_user_without_entry_and_home() -> None:
    code = "import os, sys; os.setuid(12345); from aioembed.cli import main; sys.exit(main())"
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:  # pytest's is open to root alone
        Path(open_to_all).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", code, "cache", "list"],
            env=environment | {"TMPDIR": open_to_all},
            capture_output=True,
            text=True,
            check=False,
        )
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr:
        pytest.skip("another user cannot read the packages")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
