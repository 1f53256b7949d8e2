"""Packed weights in files: packed once, shared, checked; without them a load still works."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed._packed import PackedFile, PackedFolder
from aioembed.runtime import Program

pytestmark = pytest.mark.anyio

_PROGRAM = Path(__file__).parent / "programs/tiny_clip_image.pte"
_LOGGER = "aioembed.packed"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def obtain(folder: PackedFolder, program: Path = _PROGRAM) -> PackedFile | None:
    return await folder.obtain(
        program, partial(sha256_of, program), single_thread=True, at_any_size=True
    )


def run(
    packed: Path | None, program: Path = _PROGRAM, threads: int | None = 1
) -> NDArray[np.float32]:
    """Load a program and return its output for fixed noise."""
    loaded = Program.load(program, threads=threads, packed_weights=packed)
    try:
        return run_on_noise(loaded)
    finally:
        loaded.close()


def run_on_noise(program: Program) -> NDArray[np.float32]:
    dice = np.random.default_rng(7)
    inputs = [
        (dice.random(info.shape) * (1 if "float" in info.dtype else 90)).astype(info.dtype)
        for info in program.methods["forward"].inputs
    ]
    return program.run(*inputs)[0]


@pytest.fixture(scope="session")
def expected() -> NDArray[np.float32]:
    return run(None)


@pytest.fixture
def folder(tmp_path: Path) -> PackedFolder:
    """An empty cache; a test that needs a packed file waits a second for the child process."""
    return PackedFolder(tmp_path)


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a process that has packed the program."""
    cache = tmp_path_factory.mktemp("packed")

    async def pack() -> None:
        packed = await obtain(PackedFolder(cache))
        assert packed is not None
        packed.close()

    anyio.run(pack)
    return cache


@pytest.fixture
def filled(tmp_path: Path, packed_once: Path) -> PackedFolder:
    """One with the program's file."""
    cache = shutil.copytree(packed_once, tmp_path / "cache")
    return PackedFolder(cache)


@pytest.fixture(autouse=True)
def another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which programs another test failed to pack."""
    monkeypatch.setattr(PackedFolder, "_unpackable", set())


def the_file(folder: PackedFolder) -> Path:
    (file,) = folder.path.glob("*.weights")
    return file


async def test_the_first_load_packs_and_the_next_ones_find_it(
    folder: PackedFolder, expected: NDArray[np.float32]
) -> None:
    first = await obtain(folder)
    assert first is not None
    written = the_file(folder).stat().st_mtime_ns
    with first:
        np.testing.assert_array_equal(run(first.path), expected)
    second = await obtain(folder)
    assert second is not None
    with second:
        assert second.path == the_file(folder)
        np.testing.assert_array_equal(run(second.path), expected)
    assert the_file(folder).stat().st_mtime_ns == written
    assert not list(folder.path.glob("*.tmp"))
    assert folder.path.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o022 == 0 for path in folder.path.iterdir())


async def test_programs_that_are_loaded_at_the_same_time_have_their_own_paths(
    filled: PackedFolder, expected: NDArray[np.float32]
) -> None:
    files = [await obtain(filled) for _ in range(3)]
    paths = [file.path for file in files if file is not None]
    assert len(set(paths)) == 3
    assert len({path.stat().st_ino for path in paths}) == 1
    programs = [Program.load(_PROGRAM, threads=1, packed_weights=path) for path in paths]
    for program in programs:
        np.testing.assert_array_equal(run_on_noise(program), expected)
        program.close()
    for file in files:
        assert file is not None
        file.close()
    again = await obtain(filled)
    assert again is not None
    with again:
        assert again.path == the_file(filled)


def _embed_in_process(cache: str, barrier: object) -> bytes:
    async def load() -> bytes:
        packed = await obtain(PackedFolder(Path(cache)))
        assert packed is not None
        with packed:
            return run(packed.path).tobytes()

    barrier.wait()  # type: ignore[attr-defined]
    return anyio.run(load)


def test_processes_that_start_together_pack_once_and_share(
    tmp_path: Path, expected: NDArray[np.float32]
) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        results = pool.starmap(_embed_in_process, [(str(tmp_path), barrier)] * 2)
    assert set(results) == {expected.tobytes()}
    assert len(list((tmp_path / ".packed").glob("*.weights"))) == 1


_HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("locked")
"""


async def test_no_other_process_can_lock_a_file_in_use_for_writing(filled: PackedFolder) -> None:
    packed = await obtain(filled)
    assert packed is not None
    with packed:
        program = Program.load(_PROGRAM, threads=1, packed_weights=packed.path)
        command = [sys.executable, "-c", _HOLD, str(the_file(filled))]
        done = await anyio.run_process(command)
        assert done.stdout == b"locked\n"
        program.close()
    assert (await anyio.run_process(command)).stdout == b""


def damage(content: bytes, number: int) -> bytes:
    """Return variant `number` of a file: flipped, cut, filled or another file."""
    rng = random.Random(number)
    changed = bytearray(content)
    kind = number % 5
    if kind in {0, 1}:
        for _ in range(rng.choice((1, 1, 8, 64))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del changed[rng.randrange(len(changed)) :]
    elif kind == 3:
        start = rng.randrange(len(changed))
        changed[start : start + 4096] = bytes(4096)
    else:
        changed = bytearray(rng.choice((b"", b"PK\x03\x04", rng.randbytes(len(content)))))
    return bytes(changed)


@pytest.mark.parametrize("keeps_time", [False, True])
async def test_a_damaged_file_is_never_used(
    filled: PackedFolder, expected: NDArray[np.float32], keeps_time: bool, anyio_backend: str
) -> None:
    """Damage that keeps size and time is found by `verify="always"` alone."""
    if anyio_backend == "trio":
        pytest.skip("files know nothing of event loops")
    folder = PackedFolder(filled.path.parent, verify="always" if keeps_time else "recorded")
    file = the_file(folder)
    whole, status = file.read_bytes(), file.stat()
    record = file.with_suffix(".json").read_bytes()
    refused = 0
    for number in range(300):
        changed = damage(whole, number)
        if changed == whole:
            continue
        file.unlink(missing_ok=True)
        file.write_bytes(changed)
        file.with_suffix(".json").write_bytes(record)
        if keeps_time:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = folder.open(file.stem)
        assert found is None
        assert not file.exists()
        refused += 1
    assert refused > 290
    if keeps_time:
        return
    made_again = await obtain(folder)
    assert made_again is not None
    with made_again:
        np.testing.assert_array_equal(run(made_again.path), expected)


@pytest.mark.parametrize("record", [b"", b"{}", b"not json", None])
async def test_a_file_without_its_record_is_not_used(
    filled: PackedFolder, record: bytes | None
) -> None:
    file = the_file(filled)
    described = file.with_suffix(".json")
    described.unlink()
    if record is not None:
        described.write_bytes(record)
    assert filled.open(file.stem) is None
    assert not file.exists()


async def test_a_program_replaced_under_the_same_name_is_packed_again(
    filled: PackedFolder, tmp_path: Path
) -> None:
    program = tmp_path / "program.pte"
    program.write_bytes(_PROGRAM.read_bytes())
    first = await obtain(filled, program)
    assert first is not None
    first.close()
    other = _PROGRAM.with_name("tiny_clip_text.pte").read_bytes()
    replacement = tmp_path / "replacement.pte"
    replacement.write_bytes(other)
    replacement.replace(program)
    second = await obtain(filled, program)
    assert second is not None
    second.close()
    assert {record.program_sha256 for record in filled.records()} == {
        sha256_of(_PROGRAM),
        hashlib.sha256(other).hexdigest(),
    }


async def test_small_programs_are_not_packed(folder: PackedFolder) -> None:
    found = await folder.obtain(_PROGRAM, partial(sha256_of, _PROGRAM), single_thread=True)
    assert found is None
    assert not folder.path.exists()


async def test_a_folder_that_others_can_write_into_is_not_used(
    folder: PackedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.path.mkdir(mode=0o700)
    folder.path.chmod(0o777)
    with caplog.at_level(logging.WARNING, _LOGGER):
        assert await obtain(folder) is None
    assert len(caplog.records) == 1
    assert "others can write" in caplog.text


async def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_bytes(b"")
    with caplog.at_level(logging.WARNING, _LOGGER):
        assert await obtain(PackedFolder(in_the_way)) is None
    assert len(caplog.records) == 1
    assert "is loaded without packed weights" in caplog.text


async def test_a_path_that_is_too_long_for_the_runtime_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    with caplog.at_level(logging.WARNING, _LOGGER):
        assert await obtain(PackedFolder(deep)) is None
    assert len(caplog.records) == 1


async def test_a_damaged_program_is_not_packed_and_not_tried_again(
    folder: PackedFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "damaged.pte"
    program.write_bytes(_PROGRAM.read_bytes()[:5000])
    with caplog.at_level(logging.WARNING, _LOGGER):
        assert await obtain(folder, program) is None
        assert await obtain(folder, program) is None
    assert len(caplog.records) == 1
    assert not list(folder.path.glob("*.weights"))
    assert not list(folder.path.glob("*.tmp"))


_PROGRAMS = sorted(
    path
    for folder in (_PROGRAM.parent, Path(__file__).parents[1] / "src/aioembed/data")
    for path in folder.glob("*.pte")
    if not path.stem.startswith("constant")  # these have no weights
)


@pytest.mark.parametrize("threads", [1, None])
@pytest.mark.parametrize("program", _PROGRAMS, ids=lambda path: path.stem)
def test_outputs_are_equal_to_the_bit(tmp_path: Path, program: Path, threads: int | None) -> None:
    packed = tmp_path / "weights"
    plain = run(None, program, threads)
    for _ in range(2):  # the first load writes the file, the second one maps it
        np.testing.assert_array_equal(run(packed, program, threads), plain)
    assert packed.stat().st_size


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Mount a folder over itself, so that it can only be read."""
    with ExitStack() as mounts:

        def mount(folder: Path) -> None:
            if os.geteuid() != 0:
                pytest.skip("file systems cannot be mounted here")
            for options in ("bind", "bind,remount,ro"):
                command = ["mount", "-o", options, str(folder), str(folder)]
                if subprocess.run(command, check=False, capture_output=True).returncode:
                    pytest.skip("file systems cannot be mounted here")
                if options == "bind":
                    mounts.callback(subprocess.run, ["umount", str(folder)], check=True)

        yield mount


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 1 MB, with 100 KB free."""
    mount = tmp_path / "full"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        (mount / "filler").write_bytes(bytes((1 << 20) - 100_000))
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


async def test_a_cache_that_can_only_be_read_is_a_line_in_the_log(
    filled: PackedFolder, read_only: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime opens a file for writing, even if it is complete."""
    read_only(filled.path)
    for program in (_PROGRAM, _PROGRAM.with_name("tiny_image.pte")):
        caplog.clear()
        assert await obtain(filled, program) is None
        assert len(caplog.records) == 1
        assert os.strerror(errno.EROFS) in caplog.text


async def test_where_files_cannot_be_locked_models_are_loaded_without(
    filled: PackedFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert await obtain(filled) is None
    assert len(caplog.records) == 1
    assert os.strerror(errno.ENOLCK) in caplog.text
    assert the_file(filled).exists()


async def test_where_files_cannot_be_mapped_models_are_loaded_without(
    folder: PackedFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The runtime packs into memory there, and the child has no file to show."""
    code = (
        "import sys; from aioembed import _packed; from aioembed.runtime import Program; "
        "load = Program.load; "
        "Program.load = lambda path, *, packed_weights, **given: load(path, **given); "
        "sys.exit(_packed.pack(*sys.argv[1:]))"
    )

    def command(_target: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", code, *arguments], dict(os.environ)

    monkeypatch.setattr("aioembed._packed.python_child", command)
    assert await obtain(folder) is None
    assert "has no weights to pack" in caplog.text
    assert not list(folder.path.glob("*.weights"))


async def test_a_full_disk_ends_the_child_alone_and_leaves_nothing(
    full_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PackedFolder(full_disk)
    with caplog.at_level(logging.WARNING, _LOGGER):
        assert await obtain(folder) is None  # known from the free space
        monkeypatch.setattr("aioembed._packed._SPARE", -1 << 30)
        assert await obtain(folder) is None  # found out by the child
    assert len(caplog.records) == 2
    assert not list(folder.path.glob("*.tmp"))
    assert not list(folder.path.glob("*.weights"))


async def test_a_child_that_is_killed_leaves_nothing_that_is_used(
    filled: PackedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    key = the_file(filled).stem
    filled.delete(key)

    def command(*_arguments: str) -> tuple[list[str], dict[str, str]]:
        (filled.path / f"{key}.1.tmp").write_bytes(b"half")
        return [sys.executable, "-c", killed], dict(os.environ)

    monkeypatch.setattr("aioembed._packed.python_child", command)
    assert await obtain(filled) is None
    assert filled.open(key) is None
    assert not list(filled.path.glob("*.tmp"))


async def test_a_cancelled_load_ends_the_child_and_the_next_one_packs(
    folder: PackedFolder, expected: NDArray[np.float32]
) -> None:
    with anyio.move_on_after(0.1):
        await obtain(folder)
    packed = await obtain(folder)
    assert packed is not None
    with packed:
        np.testing.assert_array_equal(run(packed.path), expected)
    assert not list(folder.path.glob("*.tmp"))


async def test_files_are_listed_counted_and_deleted(tmp_path: Path, filled: PackedFolder) -> None:
    empty = PackedFolder(tmp_path / "empty")
    assert (empty.records(), empty.total_size(), empty.prune()) == ([], 0, 0)
    first, second = await obtain(filled), await obtain(filled)
    assert first is not None
    assert second is not None
    (record,) = filled.records()
    assert record.program == "tiny_clip_image.pte"
    assert record.size == the_file(filled).stat().st_size
    assert record.is_current
    assert record.size <= filled.total_size() < record.size + 2000  # links count once
    assert filled.prune() == 0
    assert filled.delete(record.key) >= record.size
    assert filled.records() == []
    first.close()
    second.close()


async def test_pruning_drops_what_other_versions_packed_and_leftovers(filled: PackedFolder) -> None:
    packed = await obtain(filled)
    assert packed is not None
    packed.close()
    (record,) = filled.records()
    for key, changes in {"a": {"executorch": "0.9"}, "b": {"cpu": "another"}}.items():
        old = record.model_copy(update={"key": key, **changes})
        (filled.path / f"{key}.json").write_text(old.model_dump_json())
        (filled.path / f"{key}.weights").write_bytes(bytes(1000))
    (filled.path / "c.123.tmp").write_bytes(bytes(1000))
    assert filled.prune() > 3000
    assert [record.key for record in filled.records()] == [record.key]
    assert the_file(filled).exists()


async def test_the_command_lists_counts_prunes_and_deletes_them(
    filled: PackedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from aioembed.cli.models import cache_app

    monkeypatch.setenv("AIOEMBED_CACHE", str(filled.path.parent))

    async def invoke(*arguments: str) -> str:
        call = partial(CliRunner().invoke, cache_app, list(arguments))
        result = await anyio.to_thread.run_sync(call)
        assert result.exit_code == 0, result.output
        return str(result.output)

    packed = await obtain(filled)
    assert packed is not None
    packed.close()
    (record,) = filled.records()
    (listed,) = json.loads(await invoke("list", "--format", "json"))
    assert (listed["key"], listed["size"], listed["is_current"]) == (record.key, record.size, True)
    table = await invoke("list")
    assert record.key in table
    assert "tiny_clip_image.pte" in table
    assert int(await invoke("size")) == filled.total_size()
    assert "0 bytes freed" in await invoke("prune")
    assert record.key in await invoke("delete", record.key)
    assert filled.records() == []
