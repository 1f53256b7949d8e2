"""Embed the images of a Redis stream: each is stored once, whatever is killed on the way.

    python examples/redis_stream.py demo        # offline, with a Redis of its own

    python examples/redis_stream.py produce --redis redis://127.0.0.1:6379/0 FOLDER
    python examples/redis_stream.py consume --redis redis://127.0.0.1:6379/0 --index vectors.db

A message has one of the fields `path`, `url` and `bytes`, and may have a `key` to store the vector
under; without one, its id is the key. It is acknowledged after its vector is stored, so a consumer
that dies leaves it to the next one. What cannot be embedded goes to the stream `images:dead`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from local_redis import local_redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ResponseError, TimeoutError  # noqa: A004
from sample_images import draw

from aioembed import GIST_512, Err, ImageEmbeddings, Ok
from aioembed.errors import ImageFetchFailed, InvalidUserInput
from aioembed.index import EmbeddingIndex

R = TypeVar("R")
Entry = tuple[bytes, dict[bytes, bytes]]
SOURCES = (b"path", b"url", b"bytes")

BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
end
"""
"""Acknowledges a message and adds it to the dead letters, both or neither, and only once."""


@dataclass(frozen=True)
class Settings:
    """How a consumer reads.

    Attributes:
        stream: The stream of images.
        group: The consumer group.
        name: This consumer's; the next one of the same name goes on with what it left at once.
        dead_letters: The stream of what cannot be embedded.
        max_deliveries: After so many a message is given up: it may be what kills its consumers.
        idle: Seconds after which another consumer's message is taken over.
        concurrency: Most messages under way.
        patience: Seconds for which a Redis that is away is waited for.
        until_empty: Whether to stop when everything is settled.
    """

    stream: str = "images"
    group: str = "embedders"
    name: str = socket.gethostname()
    dead_letters: str = "images:dead"
    max_deliveries: int = 10
    idle: float = 30
    concurrency: int = 32
    patience: float = 300
    until_empty: bool = False


@dataclass(frozen=True)
class Message:
    """A message of the stream, and the key that its vector is stored under."""

    id: bytes
    key: str
    fields: dict[bytes, bytes]


class Consumer:
    """One consumer of the group.

    Args:
        redis: A client that does not retry by itself.
        model: Embeds the images.
        index: Keeps the vectors.
        settings: How to read.
        on_settled: Told the outcome and the key of each message that has been dealt with.
    """

    def __init__(
        self,
        redis: Redis,
        model: ImageEmbeddings,
        index: EmbeddingIndex,
        settings: Settings,
        on_settled: Callable[[str, str], object] = lambda _outcome, _key: None,
    ) -> None:
        self._redis: Any = redis  # its commands are typed as results or awaitables of them
        self._bury_script = redis.register_script(BURY)
        self._model = model
        self._index = index
        self._settings = settings
        self._on_settled = on_settled
        self._held: set[bytes] = set()
        self._cursor: Any = "0-0"
        self._stopping = False
        self.totals: Counter[str] = Counter()

    def stop(self) -> None:
        """Read no more; `run` ends when what is under way is settled."""
        self._stopping = True

    async def run(self) -> None:
        """Consume until stopped, or until the stream is empty if that is asked for."""
        await self._patiently(self._make_group)
        async with self._model.embed_stream(
            self._images(), keyed=True, ordered=False, concurrency=self._settings.concurrency
        ) as results:
            async for result in results:
                await self._settle(result)

    async def _settle(self, result: Ok[Message] | Err[Message]) -> None:
        message = result.key
        match result:
            case Ok(embedding=embedding):
                await self._index.add(message.key, embedding)
                await self._acknowledge(message)
                self._count("stored", message)
            case Err(error=InvalidUserInput() as error) if not isinstance(error, ImageFetchFailed):
                await self._bury(message, f"{type(error).__name__}: {error}")
            case _:  # perhaps another time: it is delivered again when it has been idle
                self._count("postponed", message)
        self._held.discard(message.id)

    async def _images(self) -> AsyncGenerator[tuple[Message, Any], None]:
        """Yield what can be embedded; bury what cannot."""
        async for entries in self._batches():
            new = [entry for entry in entries if entry[0] not in self._held]
            for (number, fields), deliveries in zip(new, await self._deliveries(new), strict=True):
                message = Message(
                    number, fields.get(b"key", number).decode(errors="replace"), fields
                )
                sources = [name for name in SOURCES if name in fields]
                if deliveries > self._settings.max_deliveries:
                    await self._bury(message, f"not settled in {deliveries - 1} deliveries")
                elif len(sources) != 1:
                    await self._bury(message, "needs exactly one of path, url and bytes")
                else:
                    self._held.add(number)
                    yield message, image_of(sources[0], fields[sources[0]])

    async def _batches(self) -> AsyncGenerator[list[Entry], None]:
        """Yield what this name left unfinished, then what others did, and what is new."""
        after: bytes | str = "0-0"
        while not self._stopping and (batch := await self._read(after)):
            yield batch
            after = batch[-1][0]
        while not (self._stopping or (self._settings.until_empty and await self._is_empty())):
            yield await self._take_over()
            yield await self._read(">")

    async def _read(self, after: bytes | str) -> list[Entry]:
        own = self._settings
        answer = await self._patiently(
            lambda: self._redis.xreadgroup(
                own.group, own.name, {own.stream: after}, count=own.concurrency, block=200
            )
        )
        return [(number, fields or {}) for _, batch in answer or () for number, fields in batch]

    async def _take_over(self) -> list[Entry]:
        own = self._settings
        self._cursor, entries, *_ = await self._patiently(
            lambda: self._redis.xautoclaim(
                own.stream,
                own.group,
                own.name,
                round(own.idle * 1000),
                start_id=self._cursor,
                count=own.concurrency,
            )
        )
        return [(number, fields or {}) for number, fields in entries]

    async def _deliveries(self, entries: list[Entry]) -> list[int]:
        def ask() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for number, _ in entries:
                pipeline.xpending_range(
                    self._settings.stream, self._settings.group, min=number, max=number, count=1
                )
            return pipeline.execute()  # type: ignore[no-any-return]

        answers = await self._patiently(ask) if entries else []
        return [answer[0]["times_delivered"] if answer else 1 for answer in answers]

    async def _is_empty(self) -> bool:
        own = self._settings
        groups = await self._patiently(lambda: self._redis.xinfo_groups(own.stream))
        return any(
            group["name"] == own.group.encode() and group["pending"] == 0 and group["lag"] == 0
            for group in groups
        )

    async def _acknowledge(self, message: Message) -> None:
        own = self._settings
        await self._patiently(lambda: self._redis.xack(own.stream, own.group, message.id))

    async def _bury(self, message: Message, reason: str) -> None:
        own = self._settings
        letter = message.fields | {b"id": message.id, b"reason": reason.encode()}
        flat = [part for pair in letter.items() for part in pair]
        await self._patiently(
            lambda: self._bury_script(
                keys=[own.stream, own.dead_letters], args=[own.group, message.id, *flat]
            )
        )
        self._count("dead", message)

    async def _make_group(self) -> None:
        try:
            await self._redis.xgroup_create(
                self._settings.stream, self._settings.group, id="0", mkstream=True
            )
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _patiently(self, command: Callable[[], Awaitable[R]]) -> R:
        """Run a command, again and again while Redis is away, at growing pauses."""
        give_up = anyio.current_time() + self._settings.patience
        pause = 0.05
        while True:
            try:
                return await command()
            except (ConnectionError, TimeoutError, OSError):
                if anyio.current_time() + pause > give_up:
                    raise
                await anyio.sleep(pause)
                pause = min(2 * pause, 2)
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "no such key")):
                    raise  # otherwise it came back empty
                await self._make_group()

    def _count(self, outcome: str, message: Message) -> None:
        self.totals[outcome] += 1
        self._on_settled(outcome, message.key)


def image_of(source: bytes, value: bytes) -> bytes | str | Path:
    """Return what the model takes for one of a message's fields."""
    if source == b"bytes":
        return value
    return value.decode(errors="replace") if source == b"url" else Path(os.fsdecode(value))


def connect(url: str) -> Redis:
    """Return a client that leaves retrying to its caller, and never waits for ever."""
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=10)


async def consume(url: str, index_path: Path, settings: Settings, *, verbose: bool) -> Counter[str]:
    """Consume until SIGTERM or Ctrl-C, letting what is under way finish."""

    def tell(outcome: str, key: str) -> None:
        if verbose:
            print(outcome, key, flush=True)

    async with connect(url) as redis, ImageEmbeddings(GIST_512) as model:
        await model.load()
        async with (
            EmbeddingIndex(index_path, space=model.space) as index,
            anyio.create_task_group() as tasks,
        ):
            consumer = Consumer(redis, model, index, settings, tell)
            tasks.start_soon(stop_on_signal, consumer, tasks.cancel_scope)
            await consumer.run()
            tasks.cancel_scope.cancel()
    return consumer.totals


async def stop_on_signal(consumer: Consumer, scope: anyio.CancelScope, grace: float = 20) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            consumer.stop()
            scope.deadline = anyio.current_time() + grace


async def produce(url: str, folder: Path, stream: str) -> int:
    """Add the path of every file below a folder."""
    count = 0
    async with connect(url) as redis:
        async for path in anyio.Path(folder).rglob("*"):
            if await path.is_file():
                await redis.xadd(stream, {"path": os.fsencode(path), "key": os.fsencode(path)})
                count += 1
    return count


async def demo(images: int = 200) -> None:
    """Show it: images, a few of which are broken, through a Redis of its own."""
    if shutil.which("redis-server") is None:
        sys.exit("needs redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder, local_redis(Path(folder)) as server:
        async with connect(server.url) as redis:
            for number in range(images):
                content = draw(number) if number % 20 else b"no image"
                await redis.xadd("images", {"key": f"image-{number}", "bytes": content})
            print(f"{images} messages in the stream")
            settings = Settings(until_empty=True)
            totals = await consume(server.url, Path(folder, "vectors.db"), settings, verbose=False)
            print(
                f"{totals['stored']} vectors stored, {totals['dead']} dead letters, the last one:"
            )
            letters: Any = await redis.xrevrange("images:dead", count=1)
            [(_, letter)] = letters
            print(f"  {letter[b'key'].decode()}: {letter[b'reason'].decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo")
    producing = commands.add_parser("produce")
    producing.add_argument("folder", type=Path)
    consuming = commands.add_parser("consume")
    consuming.add_argument("--index", type=Path, required=True)
    consuming.add_argument("--name", default=Settings.name)
    consuming.add_argument("--idle", type=float, default=Settings.idle)
    consuming.add_argument("--until-empty", action="store_true")
    consuming.add_argument("--verbose", action="store_true")
    for command in (producing, consuming):
        command.add_argument("--redis", default="redis://127.0.0.1:6379/0")
        command.add_argument("--stream", default=Settings.stream)
    options = parser.parse_args()
    if options.command == "demo":
        anyio.run(demo)
    elif options.command == "produce":
        print(anyio.run(produce, options.redis, options.folder, options.stream), "messages added")
    else:
        settings = Settings(
            stream=options.stream,
            name=options.name,
            idle=options.idle,
            until_empty=options.until_empty,
        )
        run = partial(consume, options.redis, options.index, settings, verbose=options.verbose)
        print(dict(anyio.run(run)))


if __name__ == "__main__":
    main()
