"""A cache that several processes, and versions of this library, use at the same time."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioembed.download import Cache, DownloadControl, FetchLimits, Resource
from aioembed.errors import CacheUnwritable, IntegrityError

from .conftest import partial_bytes

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("AIOEMBED_RACE_SECONDS", "3"))

PUBLISH = """
import hashlib, random, sys, time
from datetime import UTC, datetime
from pathlib import Path
from aioembed.download import Cache, Resource
from aioembed.download.cache import Sidecar
from aioembed.download.partial import Partial
cache, url, until = Cache(sys.argv[1]), sys.argv[2], time.time() + float(sys.argv[3])
resource, entry, rounds = Resource(url), Cache(sys.argv[1]).entry(Resource(url)), 0
entry.prepare()
while time.time() < until or not rounds:
    content = random.Random(rounds % 7).randbytes(20_000)
    sha256 = hashlib.sha256(content).hexdigest()
    part = Partial.claim(entry.folder)
    part.restart()
    part.append([content])
    entry.publish(part, Sidecar(url=resource.canonical_url, file=resource.content_name(sha256),
        size=len(content), sha256=sha256, mtime_ns=0, fetched_at=datetime.now(UTC)))
    part.release()
    rounds += 1
print(rounds)
"""

LOOK_UP = """
import asyncio, hashlib, sys, time
from aioembed.download import Cache, Resource
async def main():
    cache, resource = Cache(sys.argv[1]), Resource(sys.argv[2])
    until = time.time() + float(sys.argv[3])
    found = lost = 0
    while time.time() < until or not found:
        file = await cache.find(resource, verify="always" if found % 3 else "recorded")
        if file is None:
            lost += 1
            continue
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
        found += 1
    print(found, lost)
asyncio.run(main())
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_publishing_and_looking_up_race_without_error_or_lost_file(cache: Cache) -> None:
    """Two publishers, which exclude each other by nothing, and two readers."""
    url = "https://hub.example/model.pte"
    arguments = [str(cache.directory), url, str(SECONDS)]
    await anyio.run_process([sys.executable, "-c", PUBLISH, *arguments[:2], "0"])
    outputs: list[list[str]] = []

    async def run(program: str) -> None:
        done = await anyio.run_process([sys.executable, "-c", program, *arguments], check=False)
        assert done.returncode == 0, done.stderr.decode()
        outputs.append(done.stdout.decode().split())

    async with anyio.create_task_group() as group:
        for program in (PUBLISH, PUBLISH, LOOK_UP, LOOK_UP):
            group.start_soon(run, program)
    lost = [int(words[1]) for words in outputs if len(words) == 2]
    assert lost == [0, 0]
    [file] = await cache.list()
    assert await cache.verify(file) == file


async def test_a_file_of_an_earlier_version_is_adopted(
    cache: Cache, content: bytes, sha256: str
) -> None:
    resource = Resource("https://hub.example/model.pte")
    entry = cache.entry(resource)
    entry.folder.mkdir(parents=True)
    path = entry.folder / "model.pte"
    path.write_bytes(content)
    record = {
        "format": 1,
        "url": resource.url,
        "file": "model.pte",
        "size": len(content),
        "sha256": sha256,
        "mtime_ns": path.stat().st_mtime_ns,
        "fetched_at": "2026-01-01T00:00:00Z",
    }
    (entry.folder / "record.json").write_text(json.dumps(record))
    file = await cache.find(resource, verify="always")
    assert file is not None
    assert (file.path, file.sha256, file.name) == (path, sha256, "model.pte")
    await cache.prune()
    assert path.exists()


async def test_a_lookup_deletes_nothing_and_the_damaged_file_is_replaced(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        file.path.write_bytes(b"damaged")
        with pytest.raises(IntegrityError):
            await cache.find(server.resource())
        assert file.path.read_bytes() == b"damaged"
        assert await cache.list() == ()
        [again] = await make_fetcher().fetch([server.resource()])
    assert again.path == file.path
    assert again.path.read_bytes() == content


async def test_a_replaced_file_stays_for_those_who_use_it_until_it_is_pruned(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, sha256: str
) -> None:
    async with scripted(serve_file('"v0"', b"old"), serve_file()) as server:
        [old] = await make_fetcher().fetch([server.resource()])
        [new] = await make_fetcher().fetch([server.resource(sha256=sha256)])
    assert old.path.read_bytes() == b"old"
    assert (await cache.prune()).freed == 3
    assert not old.path.exists()
    assert new.path.exists()


@pytest.mark.parametrize("record", [b"", b"\xff\xfe", b"[1]", b"{", b'{"format": 2}'])
async def test_a_record_that_cannot_be_read_is_ignored(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, record: bytes
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
        (file.path.parent / "record.json").write_bytes(record)
        assert await cache.list() == ()
        assert await cache.find(server.resource()) is None
        assert await make_fetcher().fetch([server.resource()]) != []


@pytest.mark.parametrize("change", [{"file": "../../secret"}, {"url": "http://a:99999/m.pte"}])
async def test_a_record_that_names_a_file_elsewhere_or_no_url_is_ignored(
    *,
    scripted: Any,
    serve_file: Any,
    make_fetcher: Any,
    cache: Cache,
    tmp_path: Path,
    change: dict[str, str],
) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource()])
    path = file.path.parent / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert await cache.list() == ()


@pytest.mark.parametrize(
    "name", ["partial.bak", "partial~", "partial.host.notanumber.x", "partial.h.1.aaaa~", "Partial"]
)
async def test_folders_named_like_a_backup_are_left_alone(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, name: str
) -> None:
    async with scripted(serve_file()) as server:
        folder = cache.entry(server.resource()).folder / name
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"mine")
        await make_fetcher().fetch([server.resource()])
        await cache.prune()
    assert (folder / "data").read_bytes() == b"mine"


async def test_a_file_named_like_a_partial_download_does_not_prevent_one(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache, content: bytes
) -> None:
    async with scripted(serve_file()) as server:
        folder = cache.entry(server.resource()).folder
        folder.mkdir(parents=True)
        (folder / "partial").write_bytes(b"mine")
        [file] = await make_fetcher().fetch([server.resource()])
    assert file.path.read_bytes() == content


async def test_a_cache_that_is_a_file_is_a_typed_error(
    scripted: Any, serve_file: Any, make_fetcher: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file")
    async with scripted(serve_file()) as server:
        with pytest.raises(CacheUnwritable, match="AIOEMBED_CACHE"):
            await make_fetcher(cache=cache).fetch([server.resource()])
        with pytest.raises(CacheUnwritable):
            await cache.list()
        assert server.connections == 0


async def test_resuming_and_pausing_in_one_turn_of_the_loop_stays_paused(
    scripted: Any, serve_file: Any, make_fetcher: Any
) -> None:
    control = DownloadControl()
    async with scripted(serve_file(bytes_per_second=1e6)) as server:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: make_fetcher().fetch([server.resource()], control=control))
            await server.wait_for(lambda: server.sent > 50_000)
            control.pause()
            await server.wait_for(lambda: server.active == 0)
            control.resume()
            control.pause()
            await anyio.wait_all_tasks_blocked()
            assert control.is_paused
            assert len(server.requests) == 1
            control.resume()
        assert len(server.requests) == 2


async def test_a_download_logs_what_from_where_how_much_and_how_long(
    scripted: Any, serve_file: Any, make_fetcher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioembed.download")
    async with scripted(serve_file()) as server:
        await make_fetcher().fetch([server.resource()])
        await make_fetcher().fetch([server.resource()])
    text = caplog.text
    assert "model.pte from 127.0.0.1: 300000 bytes" in text
    assert text.count("300000 bytes in ") == 1
    assert text.count("nobody published a hash") == 1  # said once


async def test_an_expected_size_that_differs_is_a_warning(
    scripted: Any, serve_file: Any, make_fetcher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(serve_file()) as server:
        [file] = await make_fetcher().fetch([server.resource(expected_size=12)])
    assert file.size == 300_000
    assert "has 300000 bytes, but 12 were published" in caplog.text


async def test_bytes_on_the_disk_are_kept_when_the_server_cuts(
    scripted: Any, serve_file: Any, make_fetcher: Any, cache: Cache
) -> None:
    async with scripted(serve_file(cut_after=123_456)) as server:
        limits = FetchLimits(retries=0)
        with pytest.raises(Exception, match="broke"):
            await make_fetcher(limits=limits).fetch([server.resource()])
        assert partial_bytes(cache.entry(server.resource()).folder) == 123_456
