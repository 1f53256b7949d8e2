"""What can be known of a program's file before native code sees it."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidProgram, ModelFileUnreadable, shorten

__all__ = ["check_program_file", "operators_outside"]

_HEAD_BYTES = 512
_FLATBUFFER_MINIMUM = 8
_IDENTIFIER = b"ET12"
_EXTENDED_MAGIC = b"eh00"
_EXTENDED = struct.Struct("<4sIQQ")
_EXTENDED_OFFSET = 8
_SEGMENT_SIZE = struct.Struct("<Q")

_EXECUTION_PLAN, _OPERATORS, _NAME, _OVERLOAD = 1, 6, 0, 1
"""Numbers of fields in ExecuTorch's `schema/program.fbs`: of Program, ExecutionPlan, Operator."""

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"PK\x03\x04", "a ZIP archive (PyTorch checkpoints are ZIP archives)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a native executable"),
)
_TEXT_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<", "markup, perhaps an HTML page"),
    (b"{", "JSON text"),
    (b"[", "JSON text"),
)
_IDENTIFIERS: tuple[tuple[bytes, str], ...] = (
    (b"TFL3", "a TensorFlow Lite model"),
    (b"FT01", "an ExecuTorch data file (.ptd), not a program"),
    (b"BP08", "an ExecuTorch bundled program, not a plain one"),
)


def check_program_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that cannot be an ExecuTorch program, reading only its first bytes.

    The format is that of ExecuTorch's `schema/program.fbs` (file identifier `ET12`) and
    `runtime/executor` (extended header `eh00`, which states the sizes).

    Raises:
        ModelFileUnreadable: Missing, no regular file, or not to be opened.
        InvalidProgram: Empty, another type of file, or shorter than it says it should be.
    """
    head, size = _read_head(Path(path))
    if size == 0:
        raise InvalidProgram(f"{shorten(path)} is empty; fetch the .pte file again")
    if len(head) < _FLATBUFFER_MINIMUM or head[4:8] != _IDENTIFIER:
        seen = _describe(head)
        raise InvalidProgram(
            f"{shorten(path)} is not an ExecuTorch program: it looks like {seen}; pass a .pte file"
        )
    least = _least_size(head)
    if size < least:
        raise InvalidProgram(
            f"{shorten(path)} is truncated: {size} bytes of at least {least}; fetch it again"
        )


_WHAT_A_MODEL_IS = (
    ": a model is a name that `aioembed models` lists, a .pte file or its URL, not a "
    "repository of the Hugging Face hub"
)


def operators_outside(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the operators that a program's methods call outside of delegates, such as `aten::add`.

    They run one by one on the CPU's plain kernels; inside a delegate XNNPACK runs them together.

    Raises:
        ModelFileUnreadable: The file cannot be read.
        InvalidProgram: It is not a program, or damaged.
    """
    check_program_file(path)
    content = Path(path).read_bytes()
    try:
        (root,) = struct.unpack_from("<I", content)
        names = set()
        for plan in _tables(content, _field(content, root, _EXECUTION_PLAN)):
            for operator in _tables(content, _field(content, plan, _OPERATORS)):
                name, overload = (
                    _text(content, _field(content, operator, field)) for field in (_NAME, _OVERLOAD)
                )
                names.add(f"{name}.{overload}" if overload else name)
    except (struct.error, UnicodeDecodeError) as exc:
        raise InvalidProgram(f"{shorten(path)} is damaged: {exc}; fetch it again") from exc
    return tuple(sorted(names))


def _field(content: bytes, table: int, number: int) -> int | None:
    """Return where what a field of a flatbuffer's table points to is; None where it is left out."""
    (back,) = struct.unpack_from("<i", content, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", content, vtable)
    entry = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", content, vtable + entry) if entry < size else (0,)
    return _target(content, table + offset) if offset else None


def _target(content: bytes, place: int) -> int:
    return int(place + struct.unpack_from("<I", content, place)[0])


def _tables(content: bytes, vector: int | None) -> list[int]:
    if vector is None:
        return []
    (count,) = struct.unpack_from("<I", content, vector)
    struct.unpack_from("<I", content, vector + 4 * count)  # fails where the count is damaged
    return [_target(content, vector + 4 + 4 * index) for index in range(count)]


def _text(content: bytes, place: int | None) -> str:
    if place is None:
        return ""
    (length,) = struct.unpack_from("<I", content, place)
    return content[place + 4 : place + 4 + length].decode()


def _read_head(path: Path) -> tuple[bytes, int]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ModelFileUnreadable(f"{shorten(path)} is {kind}; pass the path of a .pte file")
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES), status.st_size
    except FileNotFoundError as exc:
        hint = "" if path.suffix == ".pte" else _WHAT_A_MODEL_IS
        raise ModelFileUnreadable(
            f"there is no file {shorten(path)}; check the path{hint}"
        ) from exc
    except (OSError, ValueError) as exc:
        raise ModelFileUnreadable(
            f"{shorten(path)} cannot be opened ({exc}); check the path and its permissions"
        ) from exc


def _describe(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    known = (
        _known(head.startswith, _STARTS)
        or _known(text.startswith, _TEXT_STARTS)
        or _known(head[4:8].__eq__, _IDENTIFIERS)
    )
    if known:
        return known
    if head[8:10] == b'{"':
        return "a safetensors file"
    if head[4:6] == b"ET":
        return f"a program of another schema version ({head[4:8]!r})"
    nothing = f"nothing known (it starts with {head[:8]!r})"
    return nothing if head.strip(b"\0") else "zero bytes only"


def _known(matches: Callable[[bytes], bool], names: tuple[tuple[bytes, str], ...]) -> str | None:
    return next((name for pattern, name in names if matches(pattern)), None)


def _least_size(head: bytes) -> int:
    """Return the bytes that the extended header says there are at least, 0 where there is none."""
    end = _EXTENDED_OFFSET + _EXTENDED.size
    if len(head) < end:
        return 0
    magic, length, program_size, segment_offset = _EXTENDED.unpack_from(head, _EXTENDED_OFFSET)
    if magic != _EXTENDED_MAGIC:
        return 0
    if not segment_offset:
        return int(program_size)
    stated = min(length, len(head) - _EXTENDED_OFFSET)
    if stated < _EXTENDED.size + _SEGMENT_SIZE.size:
        return int(segment_offset) + 1
    return int(segment_offset + _SEGMENT_SIZE.unpack_from(head, end)[0])
