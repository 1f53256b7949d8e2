from __future__ import annotations

import os
from pathlib import Path

import pytest

from aioembed.errors import InvalidProgram, ModelFileUnreadable
from aioembed.runtime import Program, check_program_file

SHORT = b"\0\0\0\0"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnreadable, match=r"there is no file .*absent\.pte") as info:
        Program.load(tmp_path / "absent.pte")
    assert info.value.code == 114


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnreadable, match="is a directory"):
        Program.load(tmp_path)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pte")
    with pytest.raises(ModelFileUnreadable, match="no regular file"):
        Program.load(tmp_path / "pipe.pte")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.pte"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ModelFileUnreadable, match="cannot be opened"):
        Program.load(path)


@pytest.mark.parametrize("path", ["a\0b.pte", "x" * 5000 + ".pte", "file.pte/below.pte"])
def test_a_path_that_cannot_exist_is_refused(path: str) -> None:
    with pytest.raises(ModelFileUnreadable):
        Program.load(path)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "is empty"),
        (b"ET12", "looks like nothing known"),
        (b"\0" * 4096, "zero bytes only"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "an HTML page"),
        (b"\n\n  <html lang='en'>", "an HTML page"),
        (b'\xef\xbb\xbf{"error": "not found"}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 60, "a ZIP archive"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"weight":{"dtype":"F32"}}', "a safetensors file"),
        (b"GGUF" + b"\0" * 60, "a GGUF file"),
        (SHORT + b"TFL3" + b"\0" * 60, "a TensorFlow Lite model"),
        (SHORT + b"FT01" + b"\0" * 60, "an ExecuTorch data file"),
        (SHORT + b"ET99" + b"\0" * 60, "another schema version"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "a PNG image"),
        (b"random words", "nothing known"),
    ],
)
def test_a_file_that_is_not_a_program_is_refused_with_what_it_looks_like(
    tmp_path: Path, content: bytes, seen: str
) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(content)
    with pytest.raises(InvalidProgram, match=seen) as info:
        Program.load(path)
    assert info.value.code == 35


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_program_is_refused(programs: Path, tmp_path: Path, keep: float) -> None:
    whole = (programs / "linear_xnnpack.pte").read_bytes()
    path = tmp_path / "cut.pte"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InvalidProgram, match="is truncated"):
        check_program_file(path)


def test_a_damaged_flatbuffer_is_refused_by_the_verifier(programs: Path, tmp_path: Path) -> None:
    content = bytearray((programs / "add.pte").read_bytes())
    content[0:4] = b"\xf0\xff\xff\x7f"
    path = tmp_path / "damaged.pte"
    path.write_bytes(content)
    with pytest.raises(InvalidProgram, match="damaged"):
        Program.load(path)


def test_a_path_may_hold_any_character(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xc3\xb6del \xff.pte")
    path.write_bytes((programs / "add.pte").read_bytes())
    assert Program.load(str(path)).methods
