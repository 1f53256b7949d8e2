"""Embed the images of a Redis stream; each vector is stored once, even if consumers are killed.

    python examples/redis_stream.py demo        # offline, starts a redis-server
    python examples/redis_stream.py produce --redis redis://127.0.0.1:6379/0 --folder FOLDER
    python examples/redis_stream.py consume --redis redis://127.0.0.1:6379/0 --index vectors.db

A message has a `uri` (such as file:///photos/a.jpg) or the `bytes` of an image, and may have a
`key` to store the vector under, in place of its id. It is acknowledged after its vector is stored.
A message that cannot be embedded is moved to the stream `images:dead`, with the reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from local_redis import local_redis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError  # noqa: A004
from sample_images import draw

from aioembed import Err, ImageEmbeddings, Ok
from aioembed.errors import FileReadFailed, ImageFetchFailed, InvalidUserInput
from aioembed.index import EmbeddingIndex

STREAM, GROUP, DEAD = "images", "embedders", "images:dead"


class Message(NamedTuple):
    id: bytes
    fields: dict[bytes, bytes]

    @property
    def key(self) -> str:
        return self.fields.get(b"key", self.id).decode(errors="replace")


@dataclass
class Consumer:
    redis: Any  # a client; its commands are typed as results or awaitables of them
    model: ImageEmbeddings
    index: EmbeddingIndex
    idle: float = 30  # seconds after which a message that was not acknowledged is delivered again
    max_deliveries: int = 10  # then a message is dead: it may crash its consumers
    until_empty: bool = False
    stopping: bool = False
    name: str = f"consumer-{os.getpid()}"
    under_way: set[bytes] = field(default_factory=set)
    totals: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        while not self.stopping:
            self.under_way.clear()
            try:
                await self.make_group()
                stream = self.model.embed_stream(self.images(), keyed=True, ordered=False)
                async with stream as results:
                    async for result in results:
                        await self.settle(result)
            except (ConnectionError, TimeoutError) as error:
                print(f"Redis is unreachable, retrying: {error}", flush=True)
                await anyio.sleep(1)
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):  # Redis was emptied
                    raise

    async def make_group(self) -> None:
        try:
            await self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def images(self) -> AsyncGenerator[tuple[Message, str | bytes], None]:
        """Yield messages that other consumers left unacknowledged, and new ones."""
        while not self.stopping:
            idle = round(self.idle * 1000)
            _, rows, *_ = await self.redis.xautoclaim(STREAM, GROUP, self.name, idle, count=32)
            for _, new in await self.redis.xreadgroup(GROUP, self.name, {STREAM: ">"}, 32, 200):
                rows += new
            for message in (Message(number, fields or {}) for number, fields in rows):
                uri, content = message.fields.get(b"uri"), message.fields.get(b"bytes")
                pending = await self.redis.xpending_range(STREAM, GROUP, *[message.id] * 2, 1)
                if message.id in self.under_way or not pending:
                    continue
                if pending[0]["times_delivered"] > self.max_deliveries:
                    await self.bury(message, f"not settled in {self.max_deliveries} deliveries")
                elif (uri is None) == (content is None) or (uri is not None and b":" not in uri):
                    await self.bury(message, "needs bytes, or a uri such as file:///a.jpg")
                else:
                    self.under_way.add(message.id)
                    yield message, uri.decode(errors="replace") if uri else content or b""
            if self.until_empty:
                [group] = await self.redis.xinfo_groups(STREAM)
                self.stopping = group["pending"] == group["lag"] == 0

    async def settle(self, result: Ok[Message] | Err[Message]) -> None:
        message = result.key
        match result:
            case Ok(embedding=embedding):
                await self.index.add(message.key, embedding)
                await self.redis.xack(STREAM, GROUP, message.id)
                self.count("stored", message)
            case Err(error=FileReadFailed() | ImageFetchFailed() as error):
                self.count("postponed", message, error)  # delivered again after `idle` seconds
            case Err(error=InvalidUserInput() as error):
                await self.bury(message, f"{type(error).__name__}: {error}")
            case Err(error=error):
                raise error
        self.under_way.discard(message.id)

    async def bury(self, message: Message, reason: str) -> None:
        async with self.redis.pipeline(transaction=True) as both:
            both.xadd(DEAD, message.fields | {b"id": message.id, b"reason": reason.encode()})
            both.xack(STREAM, GROUP, message.id)
            await both.execute()
        self.count("dead", message, reason)

    def count(self, outcome: str, message: Message, reason: object = "") -> None:
        self.totals[outcome] += 1
        print(outcome, message.key, reason, flush=True)


async def consume(url: str, index: Path, **options: Any) -> None:
    """Consume until SIGTERM or Ctrl-C, then finish the messages in flight."""
    async with Redis.from_url(url, socket_timeout=10) as redis, ImageEmbeddings() as model:
        await model.load()
        async with EmbeddingIndex(index, space=model.space) as vectors:
            consumer = Consumer(redis, model, vectors, **options)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stop_on_signal, consumer)
                await consumer.run()
                tasks.cancel_scope.cancel()
    print(dict(consumer.totals))


async def stop_on_signal(consumer: Consumer) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            consumer.stopping = True


async def produce(url: str, folder: Path) -> None:
    async with Redis.from_url(url) as redis:
        for path in sorted(folder.rglob("*.jpg")):  # noqa: ASYNC240
            await redis.xadd(STREAM, {"uri": path.absolute().as_uri(), "key": str(path)})


async def demo(images: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder, local_redis(Path(folder)) as server:
        async with Redis.from_url(server.url) as redis:
            for number in range(images):
                content = draw(number) if number % 20 else b"not an image"
                await redis.xadd(STREAM, {"key": f"image-{number}", "bytes": content})
        await consume(server.url, Path(folder, "vectors.db"), until_empty=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["demo", "produce", "consume"])
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--index", type=Path, default=Path("vectors.db"))
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--idle", type=float, default=30)
    given = parser.parse_args()
    if given.command == "demo":
        anyio.run(demo)
    elif given.command == "produce":
        anyio.run(produce, given.redis, given.folder)
    else:
        anyio.run(partial(consume, given.redis, given.index, idle=given.idle))
