"""Packed weights in files: what XNNPACK computes from a program's weights at every load.

A program that is loaded with such a file maps it: the load takes milliseconds, the memory is the
page cache's, and the processes of a machine share it. XNNPACK checks nothing in such a file, and
a full disk kills the process that writes one. So a child process writes it, under a temporary
name, and what is used is locked and compared with a record first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Self

import anyio

from ._child import python_child
from ._records import Record, read_record, write_record
from ._tasks import BlockingCall
from .errors import AioembedError, shorten
from .options import Verify
from .runtime import EXECUTORCH_VERSION, Program

__all__ = ["PackedFile", "PackedFolder", "PackedRecord", "is_small"]

_logger = logging.getLogger("aioembed.packed")

_FOLDER = ".packed"
_SECONDS = 600.0
_SMALL = 16 << 20
"""Programs of fewer bytes load in 20 ms anyway: they are not worth a child process."""
_SPARE = 64 << 20
"""Bytes that must stay free on the disk."""
_LONGEST_FOLDER = 200
_CHILD = f"{__name__}:pack"
_TYPED_ERROR = 3


def is_small(program: Path) -> bool:
    """Whether a program loads so quickly that packed weights are not worth it. Blocks."""
    return program.stat().st_size < _SMALL


class PackedRecord(Record):
    """What is known of a file of packed weights; it lies beside the file, as JSON.

    Attributes:
        key: Name of the file, without its suffix.
        program: File name of the program, for people.
        program_sha256: Of the program's file.
        executorch: Version of the runtime that packed.
        cpu: Fingerprint of the CPU's features: the packing depends on them.
        single_thread: Whether the program computes on one thread.
        size: Bytes.
        mtime_ns: When the file was written last, as the file system says.
        sha256: Of the file.
    """

    key: str
    program: str
    program_sha256: str
    executorch: str
    cpu: str
    single_thread: bool
    size: int
    mtime_ns: int
    sha256: str

    @property
    def is_current(self) -> bool:
        """Whether this version of the library, on this CPU, can use the file."""
        return (self.executorch, self.cpu) == (EXECUTORCH_VERSION, _cpu_fingerprint())


class PackedFile:
    """A file of packed weights that is kept from being changed; close it after the program.

    Attributes:
        path: For `Program.load`; no other program of this process uses it.
    """

    _paths_in_use: ClassVar[set[Path]] = set()
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _descriptor: int | None = None

    def __init__(self, file: Path, descriptor: int) -> None:
        self.path = self._own_path(file)
        self._descriptor = descriptor

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with self._lock:
                self._paths_in_use.discard(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _own_path(self, file: Path) -> Path:
        """Return the file's path, or that of a hard link to it where that is in use.

        The runtime keeps one object for each path, and programs that share one wait for each
        other.
        """
        with self._lock:
            path, number = file, 0
            while path in self._paths_in_use:
                number += 1
                path = file.with_name(f"{file.name}.{number}")
            if path != file and not (path.exists() and path.samefile(file)):
                path.unlink(missing_ok=True)
                path.hardlink_to(file)
            self._paths_in_use.add(path)
        return path


class PackedFolder:
    """The files of packed weights in a cache folder, which only its owner may write into.

    Args:
        cache: The cache folder.
        verify: `recorded` hashes a file only if its time differs from the record's; `always`
            hashes it at every load.
    """

    _unpackable: ClassVar[set[str]] = set()
    """Keys that could not be packed: this process does not try again at every load."""

    def __init__(self, cache: Path, *, verify: Verify = "recorded") -> None:
        self.path = cache / _FOLDER
        self._verify = verify

    async def obtain(
        self,
        program: Path,
        sha256: Callable[[], str],
        *,
        single_thread: bool,
        at_any_size: bool = False,
    ) -> PackedFile | None:
        """Return a program's packed weights; a child process packs them, once.

        Where there can be none, because the folder cannot be written, the disk is full or the
        program is damaged, that is logged and the program is to be loaded without.

        Args:
            program: The file.
            sha256: Returns its hash; called in a worker thread.
            single_thread: Whether the program is to compute on one thread.
            at_any_size: Also for a program so small that it is hardly worth it.
        """
        try:
            if not at_any_size and await BlockingCall(partial(is_small, program)).run():
                return None
            wanted = await BlockingCall(partial(self._wanted, program, sha256, single_thread)).run()
            found = await BlockingCall(partial(self.open, wanted.key)).run()
            if found is not None or wanted.key in self._unpackable:
                return found
            await self._pack(program, wanted)
            return await BlockingCall(partial(self.open, wanted.key)).run()
        except OSError as error:
            _logger.warning("%s is loaded without packed weights: %s", shorten(program.name), error)
            return None

    def open(self, key: str) -> PackedFile | None:
        """Return a file, locked and compared with its record; None if there is none to use. Blocks.

        Raises:
            OSError: The file cannot be read, locked or linked.
        """
        data = self._data(key)
        try:
            # Nothing is written, but the runtime opens it for writing, too, or does without it.
            descriptor = os.open(data, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # While it is held no process can write: the runtime asks for an exclusive lock first.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if self._is_whole(key, descriptor):
                return PackedFile(data, descriptor)
            _logger.warning("%s is damaged or not recorded; it is made again", shorten(data))
            self._discard(key)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def records(self) -> list[PackedRecord]:
        """Return the records of the files that are there, by name. Blocks."""
        records = (read_record(PackedRecord, path) for path in sorted(self.path.glob("*.json")))
        return [record for record in records if record is not None]

    def total_size(self) -> int:
        """Bytes of everything in the folder. Blocks."""
        sizes = {}
        for path in self._files():
            with suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_ino] = status.st_size  # hard links count once
        return sum(sizes.values())

    def delete(self, key: str) -> int:
        """Delete a file, its record and its links, and return the bytes freed. Blocks.

        Programs that use the file keep it until they are freed.
        """
        before = self.total_size()
        for path in self._files():
            if path.name.split(".")[0] == key:
                path.unlink(missing_ok=True)
        return before - self.total_size()

    def prune(self) -> int:
        """Delete what this version on this CPU cannot use, and leftovers. Blocks.

        Returns:
            The bytes freed.
        """
        before = self.total_size()
        current = {record.key for record in self.records() if record.is_current}
        for path in self._files():
            if path.name.split(".")[0] not in current:
                path.unlink(missing_ok=True)
        return before - self.total_size()

    def _files(self) -> list[Path]:
        try:
            return [path for path in self.path.iterdir() if path.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _data(self, key: str) -> Path:
        return self.path / f"{key}.weights"

    def _wanted(
        self, program: Path, sha256: Callable[[], str], single_thread: bool
    ) -> PackedRecord:
        """Return the record of what is needed, but for the file's own figures."""
        self._check_usable()
        program_sha256 = sha256()
        cpu = _cpu_fingerprint()
        facts = (program_sha256, EXECUTORCH_VERSION, cpu, single_thread)
        return PackedRecord(
            key=_short_hash(facts),
            program=program.name,
            program_sha256=program_sha256,
            executorch=EXECUTORCH_VERSION,
            cpu=cpu,
            single_thread=single_thread,
            size=0,
            mtime_ns=0,
            sha256="",
        )

    def _check_usable(self) -> None:
        if len(os.fsencode(self.path)) > _LONGEST_FOLDER:
            raise OSError(errno.ENAMETOOLONG, "the runtime takes no path so long", str(self.path))
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.lstat()
        is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022
        if not is_private or status.st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM, "others can write into the folder of packed weights", str(self.path)
            )

    def _is_whole(self, key: str, descriptor: int) -> bool:
        record = read_record(PackedRecord, self.path / f"{key}.json")
        status = os.fstat(descriptor)
        if record is None or record.key != key or record.size != status.st_size:
            return False
        if self._verify == "recorded" and record.mtime_ns == status.st_mtime_ns:
            return True
        with open(descriptor, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256

    def _discard(self, key: str) -> None:
        for path in (self.path / f"{key}.json", self._data(key)):
            path.unlink(missing_ok=True)

    async def _pack(self, program: Path, wanted: PackedRecord) -> None:
        """Let a child process write the file; log it if that fails."""
        free = (await BlockingCall(partial(shutil.disk_usage, self.path)).run()).free
        size = (await anyio.Path(program).stat()).st_size
        if free < size + _SPARE:
            raise OSError(errno.ENOSPC, "the disk has no room for them", str(self.path))
        command, environment = await BlockingCall(
            partial(python_child, _CHILD, str(program), str(self.path), wanted.model_dump_json())
        ).run()
        try:
            with anyio.fail_after(_SECONDS):
                child = await anyio.run_process(command, check=False, env=environment)
        except TimeoutError:
            reason = f"packing took longer than {_SECONDS:g} s"
        else:
            if not child.returncode:
                return
            lines = child.stderr.decode(errors="replace").strip().splitlines()
            said = lines[-1] if child.returncode == _TYPED_ERROR and lines else ""
            reason = said or f"the child process ended with exit code {child.returncode}"
        self._unpackable.add(wanted.key)
        await BlockingCall(partial(self._remove_leftovers, wanted.key)).run()
        _logger.warning("%s is loaded without packed weights: %s", shorten(program.name), reason)

    def _remove_leftovers(self, key: str) -> None:
        """Remove what a child process that died had written; not while another writes."""
        with suppress(BlockingIOError), _locked(self.path / f"{key}.lock", fcntl.LOCK_NB):
            for path in self.path.glob(f"{key}.*.tmp"):
                path.unlink(missing_ok=True)


def pack(program: str, folder: str, wanted: str) -> int:
    """Write a program's packed weights and their record; return the child's exit code."""
    os.umask(0o077)
    record = PackedRecord.model_validate_json(wanted)
    packed = PackedFolder(Path(folder).parent)
    try:
        with _locked(packed.path / f"{record.key}.lock"):
            if (found := packed.open(record.key)) is not None:  # another process was faster
                found.close()
                return 0
            _write(Path(program), packed.path, record)
    except (AioembedError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # the parent reads it
        return _TYPED_ERROR
    return 0


def _write(program: Path, folder: Path, record: PackedRecord) -> None:
    for leftover in folder.glob(f"{record.key}.*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = folder / f"{record.key}.{os.getpid()}.tmp"
    threads = 1 if record.single_thread else None
    try:
        Program.load(program, threads=threads, packed_weights=temporary).close()
        if not temporary.exists():
            raise FileNotFoundError(errno.ENOENT, "the program has no weights to pack")
        with temporary.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        figures = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
        write_record(record.model_copy(update=figures), folder / f"{record.key}.json")
        temporary.replace(folder / f"{record.key}.weights")
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


def _short_hash(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


@cache
def _cpu_fingerprint() -> str:
    """Return a name for what XNNPACK chooses its kernels, and with them the packing, by."""
    facts = [platform.machine(), platform.processor()]
    with suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
        kept = ("vendor_id", "model name", "cpu family", "model\t", "flags", "Features", "CPU ")
        facts += [line for line in first.splitlines() if line.startswith(kept)]
    return _short_hash(facts)
