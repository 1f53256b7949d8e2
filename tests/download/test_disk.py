"""Full disks, read-only caches and progress."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioembed.download import Cache, Progress, Resource
from aioembed.download.partial import Partial
from aioembed.errors import (
    CacheUnwritable,
    DiskFull,
)

from .conftest import partial_bytes

pytestmark = pytest.mark.anyio


async def test_a_full_disk_is_foreseen_before_a_byte_of_the_body_is_written(
    *,
    scripted: Any,
    serve_file: Any,
    make_fetcher: Any,
    leftovers: Any,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Partial, "free_bytes", lambda self: 1000)
    async with scripted(serve_file()) as server:
        with pytest.raises(DiskFull, match="needs 300000 more bytes") as caught:
            await make_fetcher().fetch([server.resource()])
        entry = cache.entry(server.resource())
    assert caught.value.code == 180
    assert partial_bytes(entry.folder) == 0


FETCH_WITH_LIMIT = """
import resource, sys, anyio
from aioembed.errors import DiskFull
from aioembed.download import Cache, Fetcher, Resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
async def main():
    try:
        await Fetcher(Cache(sys.argv[1])).fetch([Resource(sys.argv[2])])
    except DiskFull as exc:
        print("DiskFull", exc.code)
anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_disk_that_fills_in_mid_write_is_typed_and_the_part_goes_on_later(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        resource = server.resource()
        command = [sys.executable, "-c", FETCH_WITH_LIMIT, str(cache.directory), resource.url]
        done = await anyio.run_process(command)
        assert done.stdout.decode().split() == ["DiskFull", "180"]
        assert partial_bytes(cache.entry(resource).folder) == 100_000
        [file] = await make_fetcher().fetch([resource])
        assert server.ranges == [None, "bytes=100000-"]
    assert file.path.read_bytes() == content


async def test_bytes_that_failed_to_be_written_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system says so once, and reads the lost bytes from memory as if all were well."""

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    part = Partial.claim(tmp_path)
    part.append([bytes(100)])
    part.append([bytes(50)])
    with pytest.raises(OSError, match="Input/output error"):
        part.settle()
    part.release()
    again = Partial.claim(tmp_path)
    again.release()
    assert again.received == 0


def _mount(folder: Path, option: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount(folder, "size=200k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_real_full_disk_foreseen_and_in_mid_write(
    scripted: Any, serve_file: Any, make_fetcher: Any, tiny_disk: Path
) -> None:
    cache = Cache(tiny_disk)
    async with scripted(serve_file(), serve_file(framing="chunked")) as server:
        with pytest.raises(DiskFull, match="needs 300000 more"):
            await make_fetcher(cache=cache).fetch([server.resource()])
        with pytest.raises(DiskFull, match="no space"):
            await make_fetcher(cache=cache).fetch([server.resource()])
        assert partial_bytes(cache.entry(server.resource()).folder) > 0


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """A folder and what makes it read-only, for root by mounting."""
    folder = tmp_path / "frozen"
    folder.mkdir()
    if os.geteuid() != 0:

        def chmod() -> None:
            for path in [*folder.rglob("*"), folder]:
                path.chmod(0o555 if path.is_dir() else 0o444)

        yield folder, chmod
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        return
    _mount(folder, "size=4m")
    remount = ["mount", "-o", "remount,ro", str(folder)]
    yield folder, lambda: subprocess.check_call(remount)
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_read_only_cache_serves_what_it_has(
    scripted: Any, serve_file: Any, make_fetcher: Any, sha256: str, freezable: Any
) -> None:
    folder, freeze = freezable
    cache = Cache(folder)
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher(cache=cache).fetch([server.resource()])
        os.utime(file.path, (1e9, 1e9))
        freeze()
        fetcher = make_fetcher(cache=cache, verify="always")
        assert await fetcher.fetch([server.resource(sha256=sha256)]) != []
        assert (await cache.mark_probed(file)).probed
        assert await cache.list() == (file,)
        with pytest.raises(CacheUnwritable):
            await cache.delete(file)
        with pytest.raises(CacheUnwritable):
            await fetcher.fetch([Resource(f"{server.origin}/other.pte")])


async def test_progress_is_monotonic_and_reaches_1_once_even_through_a_restart(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    slow: dict[str, Any] = {"bytes_per_second": 1e6}
    seen: list[Progress] = []
    steps = (
        serve_file(cut_after=200_000, **slow),
        serve_file('"v2"', cut_after=50_000, **slow),
        serve_file('"v2"', **slow),
    )
    async with scripted(*steps) as server:
        await make_fetcher().fetch([server.resource()], on_progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    received = [progress.received for progress in seen]
    assert fractions == sorted(fractions)
    assert received == sorted(received)
    assert fractions.count(1.0) == 1
    assert len(set(fractions)) > 3


async def test_an_observer_that_raises_changes_nothing_and_is_logged_once(
    scripted: Any,
    serve_file: Any,
    make_fetcher: Any,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def observe(progress: Progress) -> None:
        raise RuntimeError("observer")

    async with scripted(serve_file(bytes_per_second=2e6)) as server:
        [file] = await make_fetcher().fetch([server.resource()], on_progress=observe)
    assert file.path.read_bytes() == content
    assert caplog.text.count("RuntimeError: observer") == 1


async def test_several_files_give_one_progress_by_bytes(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    seen: list[Progress] = []
    async with scripted(serve_file(bytes_per_second=1e6)) as server:
        wanted = [Resource(f"{server.origin}/{name}") for name in ("model.pte", "tokenizer.json")]
        files = await make_fetcher().fetch(wanted, on_progress=seen.append)
    assert [file.name for file in files] == ["model.pte", "tokenizer.json"]
    assert (seen[-1].received, seen[-1].total) == (600_000, 600_000)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)
