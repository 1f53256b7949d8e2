"""Controls of a download, and files of the cache: in use, pruned, damaged, pinned."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioembed.download import Cache, DownloadControl, Fetcher, Progress, Resource
from aioembed.errors import (
    AlreadyOngoing,
    AlreadyPaused,
    CacheUnwritable,
    DownloadCancelled,
    IntegrityError,
    NotActive,
)

pytestmark = pytest.mark.anyio


async def test_pause_stops_the_transfer_and_resume_goes_on(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    control = DownloadControl()
    seen: list[Progress] = []
    results: list[Any] = []
    async with scripted(serve_file(bytes_per_second=1e6)) as server:

        async def run() -> None:
            fetch = make_fetcher().fetch
            wanted = [server.resource()]
            results.extend(await fetch(wanted, control=control, on_progress=seen.append))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await server.wait_for(lambda: bool(seen) and seen[-1].received > 50_000)
            control.pause()
            with pytest.raises(AlreadyPaused) as paused:
                control.pause()
            await server.wait_for(lambda: server.active == 0)
            assert control.is_paused
            assert control.is_active
            assert results == []
            control.resume()
            with pytest.raises(AlreadyOngoing) as ongoing:
                control.resume()
        assert len(server.requests) == 2
        assert server.ranges[1] is not None
    assert (paused.value.code, ongoing.value.code) == (182, 183)
    assert results[0].path.read_bytes() == content
    assert not control.is_active


@pytest.mark.parametrize("paused", [False, True])
async def test_cancel_ends_the_fetch_and_keeps_the_part(
    scripted: Any, serve_file: Any, make_fetcher: Any, leftovers: Any, paused: bool
) -> None:
    control = DownloadControl()
    seen: list[Progress] = []
    async with scripted(serve_file(bytes_per_second=1e6), serve_file()) as server:

        async def run() -> None:
            fetch = make_fetcher().fetch
            with pytest.raises(DownloadCancelled) as caught:
                await fetch([server.resource()], control=control, on_progress=seen.append)
            assert caught.value.code == 118

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await server.wait_for(lambda: bool(seen) and seen[-1].received > 50_000)
            if paused:
                control.pause()
                await server.wait_for(lambda: server.active == 0)
            control.cancel()
        assert leftovers() == ["partial/data", "partial/journal.json"]
        await make_fetcher().fetch([server.resource()])
        assert server.ranges[-1] is not None


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
async def test_controls_without_a_download_say_so(action: str) -> None:
    with pytest.raises(NotActive) as caught:
        getattr(DownloadControl(), action)()
    assert caught.value.code == 184


async def test_pausing_one_of_two_callers_leaves_the_other_going(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    control = DownloadControl()
    async with scripted(serve_file(bytes_per_second=1e5)) as server:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: make_fetcher().fetch([server.resource()], control=control))
            await server.wait_for(lambda: server.sent > 50_000)

            async def other() -> None:
                await make_fetcher().fetch([server.resource()])
                control.resume()

            group.start_soon(other)
            await anyio.wait_all_tasks_blocked()
            control.pause()
        assert 1 <= len(server.requests) <= 2


async def test_list_total_size_and_delete(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache
) -> None:
    assert await cache.list() == ()
    assert await cache.total_size() == 0
    async with scripted(serve_file()) as server:
        wanted = [Resource(f"{server.origin}/{name}") for name in ("b.pte", "a.pte")]
        files = await make_fetcher().fetch(wanted)
    assert await cache.list() == (files[1], files[0])
    assert await cache.total_size() > 600_000
    assert await cache.delete(files[0]) > 300_000
    assert await cache.delete(files[0]) == 0
    assert await cache.list() == (files[1],)
    assert not files[0].path.exists()


async def test_deleting_a_file_in_use_is_harmless(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    with file.path.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as mapped:
        assert (await cache.prune(max_size=0)).files == (file,)
        assert not file.path.exists()
        assert bytes(mapped) == content


async def test_prune_drops_what_was_not_used_for_longest(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache
) -> None:
    async with scripted(serve_file()) as server:
        wanted = [Resource(f"{server.origin}/{i}.pte") for i in range(3)]
        files = await make_fetcher().fetch(wanted)
    for age, file in enumerate(files):
        os.utime(file.path.parent / "record.json", (1e9 - age, 1e9 - age))
    await cache.find(wanted[2])
    assert (await cache.prune(max_size=600_000)).files == (files[1],)
    assert (await cache.prune(older_than=timedelta(days=1))).files == (files[0],)
    assert await cache.list() == (files[2],)


async def test_bytes_that_differ_from_the_recorded_hash_are_an_integrity_error(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        file.path.write_bytes(content[::-1])
        with pytest.raises(IntegrityError, match="damaged"):
            await make_fetcher().find_cached([server.resource()])
        assert await make_fetcher().find_cached([server.resource()]) is None
        [again] = await make_fetcher().fetch([server.resource()])
    assert again.path.read_bytes() == content


async def test_damage_that_keeps_size_and_time_is_found_by_verify_always(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        status = file.path.stat()
        file.path.write_bytes(content[::-1])
        os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert await make_fetcher().find_cached([server.resource()]) == [file]
        with pytest.raises(IntegrityError, match="damaged"):
            await make_fetcher(verify="always").fetch([server.resource()])


async def test_a_file_that_was_only_touched_is_hashed_once_and_recorded_again(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    os.utime(file.path, (1e9, 1e9))
    assert await cache.find(server.resource()) == file
    record = json.loads((file.path.parent / "record.json").read_text())
    assert record["mtime_ns"] == 10**18


async def test_a_hash_trusted_on_first_use_stays_pinned_when_the_file_is_lost(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file(), serve_file('"v2"', content[::-1])) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        assert not file.trusted
        file.path.unlink()
        with pytest.raises(IntegrityError, match="first downloaded"):
            await make_fetcher().fetch([server.resource()])
        await cache.delete(file)
        [other] = await make_fetcher().fetch([server.resource()])
    assert other.path.read_bytes() == content[::-1]


async def test_the_cache_remembers_that_a_file_was_probed_until_its_bytes_change(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, sha256: str
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        assert (file.trusted, file.probed) == (False, False)
        assert (await cache.mark_probed(file)).probed
        [known] = await make_fetcher().fetch([server.resource(sha256=sha256)])
        assert (known.trusted, known.probed) == (True, True)
        await cache.delete(file)
        [again] = await make_fetcher().fetch([server.resource()])
    assert not again.probed
    assert not (await Cache(cache.directory / "other").mark_probed(again)).probed


async def test_another_published_hash_at_the_same_address_replaces_the_file(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, sha256: str
) -> None:
    async with scripted(serve_file('"v0"', b"old"), serve_file()) as server:
        await make_fetcher().fetch([server.resource()])
        [file] = await make_fetcher().fetch([server.resource(sha256=sha256)])
    assert file.path.read_bytes() == content


async def test_the_variable_aioembed_cache_moves_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "elsewhere"))
    assert Cache().directory == tmp_path / "elsewhere"
    monkeypatch.delenv("AIOEMBED_CACHE")
    assert Cache().directory.name == "aioembed"


async def test_an_unwritable_cache_says_where_another_can_be_chosen(
    scripted: Any, serve_file: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with scripted(serve_file()) as server:
        fetcher = Fetcher(Cache(tmp_path / "file" / "cache"))
        with pytest.raises(CacheUnwritable, match="AIOEMBED_CACHE") as caught:
            await fetcher.fetch([server.resource()])
        assert server.connections == 0
    assert caught.value.code == 180
