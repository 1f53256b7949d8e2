"""One transfer per file, however many tasks, loops and processes want it; kills leave no harm."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import filelock
import pytest
from anyio import to_thread

from aioembed.download import Cache, DownloadControl, Fetcher, FetchLimits, Progress
from aioembed.errors import DownloadFailed, DownloadInProgress, IntegrityError
from aioembed.testing._loopback import Reply

pytestmark = pytest.mark.anyio

FETCH = """
import sys, anyio
from aioembed.download import Cache, Fetcher, Resource
async def main():
    [file] = await Fetcher(Cache(sys.argv[1])).fetch([Resource(sys.argv[2])])
    print(file.sha256)
if len(sys.argv) > 3:
    from aioembed.download import lock
    lock._acquire = lambda lock: True
anyio.run(main)
"""


async def test_fifty_tasks_wanting_one_file_make_one_get_and_all_see_progress(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    seen: list[list[Progress]] = [[] for _ in range(50)]
    async with scripted(serve_file(bytes_per_second=1e6)) as server:

        async def want(index: int) -> None:
            fetcher = make_fetcher()
            [file] = await fetcher.fetch([server.resource()], on_progress=seen[index].append)
            assert file.path.read_bytes() == content

        async with anyio.create_task_group() as group:
            for index in range(50):
                group.start_soon(want, index)
        assert len(server.requests) == 1
    for progress in seen:
        fractions = [p.fraction for p in progress]
        assert fractions == sorted(fractions)
        assert fractions.count(1.0) == 1
        assert any(0 < fraction < 1 for fraction in fractions)


async def test_one_that_is_cancelled_leaves_the_others_to_finish(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes
) -> None:
    finished = []
    async with scripted(serve_file(bytes_per_second=1e6)) as server:

        async def want(scope: anyio.CancelScope) -> None:
            with scope:
                finished.extend(await make_fetcher().fetch([server.resource()]))

        scopes = [anyio.CancelScope() for _ in range(5)]
        async with anyio.create_task_group() as group:
            for scope in scopes:
                group.start_soon(want, scope)
            await server.wait_for(lambda: server.sent > 100_000)
            scopes[0].cancel()
            scopes[3].cancel()
        first, *rest = server.ranges
    assert [file.path.read_bytes() == content for file in finished] == [True] * 3
    assert first is None
    assert len(rest) <= 1
    assert all(begin is not None for begin in rest)


async def test_the_last_one_cancelled_stops_the_transfer_and_the_part_stays(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, leftovers: Any
) -> None:
    async with scripted(serve_file(bytes_per_second=5e5), serve_file()) as server:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(make_fetcher().fetch, [server.resource()])
            await server.wait_for(lambda: server.sent > 100_000)
            group.cancel_scope.cancel()
        await server.wait_for(lambda: server.active == 0)
        assert server.sent < len(content)
        assert leftovers() == ["partial/data", "partial/journal.json"]
        [file] = await make_fetcher().fetch([server.resource()])
        assert server.ranges[-1] is not None
    assert file.path.read_bytes() == content


async def test_a_failure_reaches_everyone_who_waited(scripted: Any, make_fetcher: Any) -> None:
    errors: list[Exception] = []
    async with scripted(Reply(404, body=bytes(100_000), bytes_per_second=1e6)) as server:

        async def want() -> None:
            try:
                await make_fetcher().fetch([server.resource()])
            except DownloadFailed as exc:
                errors.append(exc)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(want)
        assert len(server.requests) == 1
    assert len(errors) == len({id(error) for error in errors}) == 5


async def test_two_event_loops_in_one_process_share_one_transfer(
    scripted: Any, serve_file: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file(bytes_per_second=1e6)) as server:
        resource = server.resource()

        def other_loop() -> bytes:
            [file] = anyio.run(Fetcher(cache).fetch, [resource])
            return Path(file.path).read_bytes()

        results: list[bytes] = []

        async def in_thread() -> None:
            results.append(await to_thread.run_sync(other_loop))

        async with anyio.create_task_group() as group:
            group.start_soon(in_thread)
            group.start_soon(in_thread)
            await Fetcher(cache).fetch([resource])
        assert len(server.requests) == 1
    assert results == [content, content]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("locks", ["working", "doing nothing"])
async def test_two_processes_wanting_one_file_both_get_it_complete(
    *,
    scripted: Any,
    serve_file: Any,
    cache: Cache,
    sha256: str,
    leftovers: Any,
    locks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted(serve_file(bytes_per_second=4e5)) as server:
        command = [sys.executable, "-c", FETCH, str(cache.directory), server.resource().url]
        if locks == "doing nothing":
            monkeypatch.setattr("aioembed.download.lock._acquire", lambda lock: True)
            command.append("no locks")
        async with await anyio.open_process(command) as process:
            await server.wait_for(lambda: server.sent > 50_000)
            [file] = await Fetcher(cache).fetch([server.resource()])
            assert process.stdout is not None
            printed = await process.stdout.receive()
            assert await process.wait() == 0
        assert server.ranges == ([None] if locks == "working" else [None, None])
        assert printed.decode().strip() == file.sha256 == sha256
        assert await cache.find(server.resource(), verify="always") == file
    assert leftovers() == ["model.pte", "record.json"]


async def test_without_locks_a_download_still_works_and_logs_it(
    scripted: Any,
    serve_file: Any,
    make_fetcher: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(self: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    async with scripted(serve_file()) as server:
        with caplog.at_level(logging.WARNING, "aioembed.download"):
            await make_fetcher().fetch([server.resource()])
    assert "no file lock" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_waiting_for_another_process_shows_its_progress(
    scripted: Any, serve_file: Any, cache: Cache, sha256: str
) -> None:
    seen: list[Progress] = []
    async with scripted(serve_file(bytes_per_second=4e5)) as server:
        command = [sys.executable, "-c", FETCH, str(cache.directory), server.resource().url]
        async with await anyio.open_process(command) as process:
            await server.wait_for(lambda: server.sent > 0)
            [file] = await Fetcher(cache).fetch([server.resource()], on_progress=seen.append)
            await process.wait()
        assert len(server.requests) == 1
    assert file.sha256 == sha256
    assert any(0 < progress.fraction < 1 for progress in seen)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_after_a_kill_in_mid_download_the_next_run_resumes(
    scripted: Any, serve_file: Any, cache: Cache, content: bytes, leftovers: Any
) -> None:
    slow = serve_file(bytes_per_second=5e5)
    async with scripted(slow, serve_file()) as server:
        command = [sys.executable, "-c", FETCH, str(cache.directory), server.resource().url]
        async with await anyio.open_process(command) as process:
            await server.wait_for(lambda: server.sent > 150_000)
            process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
        assert [name.split("/")[-1] for name in leftovers()] == ["data", "journal.json"]
        [file] = await Fetcher(cache).fetch([server.resource()])
        assert server.ranges[0] is None
        assert int(server.ranges[1].removeprefix("bytes=").rstrip("-")) > 0
    assert file.path.read_bytes() == content
    assert leftovers() == ["model.pte", "record.json"]


async def test_orphans_are_reclaimed_by_prune_and_parts_being_written_are_not(
    scripted: Any, serve_file: Any, cache: Cache, leftovers: Any
) -> None:
    async with scripted(serve_file(bytes_per_second=5e5)) as server:
        resource = server.resource()
        folder = cache.entry(resource).folder
        dead = await anyio.open_process(["true"])
        await dead.wait()
        host = os.uname().nodename
        for name in (f"partial.{host}.{dead.pid}.aaaa", "partial"):
            (folder / name).mkdir(parents=True)
            (folder / name / "data").write_bytes(b"1234")
        (folder / "record.json.1-a.tmp").write_bytes(b"{")
        async with anyio.create_task_group() as group:
            group.start_soon(Fetcher(cache).fetch, [resource])
            await server.wait_for(lambda: server.sent > 50_000)
            pruned = await cache.prune()
            assert (pruned.files, pruned.freed) == ((), 0)
            with pytest.raises(DownloadInProgress) as caught:
                await cache.delete(resource)
            assert caught.value.code == 181
            group.cancel_scope.cancel()
        pruned = await cache.prune()
    assert pruned.freed > 0
    assert leftovers() == []


async def test_a_part_of_a_process_on_another_host_is_left_alone_until_it_is_old(
    cache: Cache, scripted: Any, serve_file: Any
) -> None:
    async with scripted(serve_file()) as server:
        resource = server.resource()
        part = cache.entry(resource).folder / "partial.elsewhere.1.aaaa"
        part.mkdir(parents=True)
        (part / "data").write_bytes(b"1234")
        await Fetcher(cache).fetch([resource])
        assert part.exists()
        for path in (part / "data", part):
            os.utime(path, (0, 0))
        await cache.prune()
    assert not part.exists()


async def test_a_control_belongs_to_one_fetch_at_a_time(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    control = DownloadControl()
    slow = serve_file(bytes_per_second=5e5)
    async with scripted(slow) as server, anyio.create_task_group() as group:
        group.start_soon(lambda: make_fetcher().fetch([server.resource()], control=control))
        await server.wait_for(lambda: server.sent > 0)
        with pytest.raises(DownloadInProgress) as caught:
            await make_fetcher().fetch([server.resource()], control=control)
        group.cancel_scope.cancel()
    assert caught.value.code == 181


async def test_different_hashes_for_one_address_do_not_share_a_result(
    scripted: Any, serve_file: Any, make_fetcher: Any, content: bytes, sha256: str
) -> None:
    limits = FetchLimits(retries=0)
    wrong = hashlib.sha256(b"another").hexdigest()
    async with scripted(serve_file(bytes_per_second=1e6)) as server:

        async def want_wrong() -> None:
            with pytest.raises(IntegrityError, match="published"):
                await make_fetcher(limits=limits).fetch([server.resource(sha256=wrong)])

        async with anyio.create_task_group() as group:
            group.start_soon(want_wrong)
            [file] = await make_fetcher().fetch([server.resource(sha256=sha256)])
    assert file.sha256 == sha256
