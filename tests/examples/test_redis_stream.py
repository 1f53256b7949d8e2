"""A consumer of a real Redis: kills, broken images and outages lose and duplicate nothing."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings
from aioembed.testing._loopback import LoopbackServer, Reply, Request

from .conftest import run, start

redis = pytest.importorskip("redis")
if shutil.which("redis-server") is None:
    pytest.skip("needs redis-server", allow_module_level=True)

from local_redis import LocalRedis, local_redis
from redis.asyncio import Redis as AsyncRedis
from redis_stream import Consumer, Message
from sample_images import draw

from aioembed.index import EmbeddingIndex

pytestmark = pytest.mark.anyio
POISON_EVERY = 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalRedis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with local_redis(folder) as running:
        yield running


@pytest.fixture
def client(server: LocalRedis) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def produce(client: Any, count: int) -> tuple[set[str], set[str]]:
    """Add messages and return the keys of the images, and those of the poison."""
    images: set[str] = set()
    poison: set[str] = set()
    pipeline = client.pipeline()
    for number in range(count):
        broken = number % POISON_EVERY == 7
        key = f"{'broken' if broken else 'image'}-{number}"
        (poison if broken else images).add(key)
        content = draw(number, side=24)
        pipeline.xadd("images", {"key": key, "bytes": content[:60] if broken else content})
    pipeline.execute()
    return images, poison


class Observed(Consumer):
    """A consumer that reports each outcome as it comes."""

    def observe(self, callback: Callable[[str, str], object]) -> Observed:
        self.callback = callback
        return self

    def count(self, outcome: str, message: Message, reason: object = "") -> None:
        super().count(outcome, message, reason)
        if callback := getattr(self, "callback", None):
            callback(outcome, message.key)


@asynccontextmanager
async def consumer_of(server: LocalRedis, index: Path, **options: Any) -> AsyncIterator[Observed]:
    async with (
        AsyncRedis.from_url(server.url, socket_timeout=10) as connected,
        ImageEmbeddings(EFFICIENTNET_LITE0) as model,
    ):
        await model.load()
        async with EmbeddingIndex(index, space=model.space) as vectors:
            yield Observed(connected, model, vectors, **options)


async def consume(server: LocalRedis, index: Path, **options: Any) -> dict[str, int]:
    async with consumer_of(server, index, until_empty=True, **options) as consumer:
        with anyio.fail_after(120):
            await consumer.run()
    return dict(consumer.totals)


async def assert_stored(index: Path, keys: set[str]) -> None:
    """Assert that the index has these keys, each once, and the vectors of their images."""
    async with ImageEmbeddings(EFFICIENTNET_LITE0) as model, EmbeddingIndex(index) as vectors:
        assert await vectors.count() == len(keys)
        assert await vectors.keys() == sorted(keys)
        for key in sorted(keys)[::50]:
            if key.startswith("image-"):
                expected = await model.forward(draw(int(key.removeprefix("image-")), side=24))
                stored: Any = await vectors.get(key)
                np.testing.assert_allclose(stored, expected, atol=1e-6)


def dead_letters(client: Any) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in client.xrange("images:dead")]


def assert_all_settled(client: Any, poison: set[str]) -> None:
    [group] = client.xinfo_groups("images")
    assert (group["pending"], group["lag"]) == (0, 0)
    assert sorted(letter[b"key"].decode() for letter in dead_letters(client)) == sorted(poison)
    assert all(b"ImageDecodeError" in letter[b"reason"] for letter in dead_letters(client))


def consume_until_killed(server: LocalRedis, index: Path, after: int) -> int:
    """Run a consumer, SIGKILL it when it has settled so many, and return how many it printed."""
    arguments = ("consume", "--redis", server.url, "--index", index, "--idle", "3")
    with start("redis_stream.py", *arguments) as process:
        assert process.stdout is not None
        for _ in range(after):
            assert process.stdout.readline()
        process.kill()
        printed = after + len(process.stdout.readlines())
    assert process.returncode == -signal.SIGKILL
    return printed


@pytest.mark.parametrize(
    ("count", "kills", "most"),
    [(200, 3, 50), pytest.param(2000, 20, 180, marks=pytest.mark.slow, id="2000-20")],
)
async def test_killed_consumers_lose_nothing_and_double_nothing(
    server: LocalRedis, client: Any, tmp_path: Path, *, count: int, kills: int, most: int
) -> None:
    images, poison = produce(client, count)
    index, chance, settled = tmp_path / "vectors.db", random.Random(8), 0
    for _ in range(kills):
        after = chance.randint(1, most)
        settled += await anyio.to_thread.run_sync(consume_until_killed, server, index, after)
    assert settled < count + kills
    print(f"{kills} consumers killed, {settled} of {count} settled by them")
    await consume(server, index, idle=3)
    assert_all_settled(client, poison)
    await assert_stored(index, images)


async def test_a_redis_that_dies_and_comes_back_is_waited_for(
    server: LocalRedis, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, poison = produce(client, 200)
    dies = anyio.Event()

    def tell(_outcome: str, _key: str) -> None:
        if consumer.totals.total() == 50:
            server.kill()
            dies.set()

    options = {"until_empty": True, "idle": 2}
    async with (
        consumer_of(server, tmp_path / "vectors.db", **options) as consumer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.observe(tell).run)
        await dies.wait()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        await anyio.to_thread.run_sync(server.start)
    assert "Redis is unreachable, retrying: " in capsys.readouterr().out
    assert_all_settled(client, poison)
    await assert_stored(tmp_path / "vectors.db", images)


async def test_a_redis_that_comes_back_empty_gets_its_group_again(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    produce(client, 60)
    later: set[str] = set()

    def tell(_outcome: str, key: str) -> None:
        if consumer.totals.total() == 20:
            client.flushall()
            later.add(client.xadd("images", {"bytes": draw(1)}).decode())
        elif key in later:
            consumer.stopping = True

    async with consumer_of(server, tmp_path / "vectors.db") as consumer:
        with anyio.fail_after(60):
            await consumer.observe(tell).run()
    async with EmbeddingIndex(tmp_path / "vectors.db") as index:
        assert later <= set(await index.keys())


async def test_two_consumers_share_a_stream(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    images, poison = produce(client, 200)
    index = tmp_path / "vectors.db"
    async with anyio.create_task_group() as tasks:
        for name in ("one", "two"):
            tasks.start_soon(partial(consume, server, index, name=name))
    assert_all_settled(client, poison)
    await assert_stored(index, images)


async def test_a_terminated_consumer_finishes_what_it_has(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    produce(client, 300)
    arguments = ("--redis", server.url, "--index", tmp_path / "vectors.db")

    def terminate() -> list[str]:
        with start("redis_stream.py", "consume", *arguments) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            process.terminate()
            lines = [first, *process.stdout]
        assert process.returncode == 0
        return lines

    *settled, _totals = await anyio.to_thread.run_sync(terminate)
    [group] = client.xinfo_groups("images")
    assert group["pending"] == 0
    assert group["lag"] == 300 - len(settled)
    await assert_stored(
        tmp_path / "vectors.db", {line.split()[1] for line in settled if line.startswith("stored")}
    )


async def test_malformed_messages_are_dead_letters_with_the_reason(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    wrong: list[dict[Any, Any]] = [
        {"key": "nothing", "note": "hello"},
        {"key": "two", "bytes": draw(1), "uri": "https://example.org/a.png"},
        {"key": "empty", "bytes": b""},
        {"key": "scheme", "uri": "gopher://example.org/a.png"},
        {"key": "relative", "uri": "photos/a.png"},
        {"key": "text", "uri": b"\xff\xfe"},
        {"key": "nul", "uri": b"file:///a\x00b"},
        {b"key": b"\xff", "bytes": b"no image"},
    ]
    for fields in wrong:
        client.xadd("images", fields)
    assert await consume(server, tmp_path / "vectors.db") == {"dead": len(wrong)}
    letters = dead_letters(client)
    assert {letter[b"key"] for letter in letters} == {
        value.encode() if isinstance(value, str) else value
        for fields in wrong
        for key, value in fields.items()
        if key in {"key", b"key"}
    }
    assert all(letter[b"reason"] and letter[b"id"] for letter in letters)


async def test_a_message_that_keeps_killing_its_consumers_is_given_up(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    client.xgroup_create("images", "embedders", id="0", mkstream=True)
    deadly = client.xadd("images", {"key": "deadly", "bytes": draw(1)})
    client.xreadgroup("embedders", "dead", {"images": ">"})
    client.xclaim("images", "embedders", "dead", 0, [deadly], retrycount=10)
    assert await consume(server, tmp_path / "vectors.db", idle=0.001) == {"dead": 1}
    [letter] = dead_letters(client)
    assert letter[b"reason"] == b"not settled in 10 deliveries"


async def test_an_image_that_cannot_be_fetched_yet_is_tried_again(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    def reply(_request: Request) -> Reply:
        return Reply(200 if len(images.requests) > 1 else 503, body=draw(1))

    async with LoopbackServer(reply) as images:
        client.xadd("images", {"key": "late", "uri": f"{images.origin}/late.png"})
        totals = await consume(server, tmp_path / "vectors.db", idle=0.3)
    assert totals == {"postponed": 1, "stored": 1}


async def test_a_file_that_is_not_there_yet_is_tried_again_before_it_is_dead(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    late, missing = tmp_path / "late.png", tmp_path / "missing.png"
    for path in (late, missing):
        client.xadd("images", {"key": path.name, "uri": path.as_uri()})

    def tell(outcome: str, key: str) -> None:
        if (outcome, key) == ("postponed", late.name):
            late.write_bytes(draw(1))

    options = {"until_empty": True, "idle": 0.05, "max_deliveries": 3}
    async with consumer_of(server, tmp_path / "vectors.db", **options) as consumer:
        with anyio.fail_after(60):
            await consumer.observe(tell).run()
    assert consumer.totals == {"postponed": 4, "stored": 1, "dead": 1}
    [letter] = dead_letters(client)
    assert (letter[b"key"], letter[b"reason"]) == (b"missing.png", b"not settled in 3 deliveries")


async def test_a_consumer_in_another_folder_finds_what_was_produced(
    server: LocalRedis, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a b.jpg").write_bytes(draw(1))
    monkeypatch.chdir(tmp_path)
    arguments = ("produce", "--redis", server.url, "--folder", "photos")
    await anyio.to_thread.run_sync(run, "redis_stream.py", *arguments)
    monkeypatch.chdir("/")
    assert await consume(server, tmp_path / "vectors.db") == {"stored": 1}


async def test_messages_without_a_key_are_stored_under_their_id(
    server: LocalRedis, client: Any, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(draw(1))
    number = client.xadd("images", {"uri": picture.as_uri()})
    await consume(server, tmp_path / "vectors.db")
    await assert_stored(tmp_path / "vectors.db", {number.decode()})


async def test_the_demo_runs() -> None:
    printed = await anyio.to_thread.run_sync(run, "redis_stream.py", "demo")
    assert "{'dead': 10, 'stored': 190}" in printed
