"""Vectors by key: stored exactly once, searched exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import EmbeddingSpace
from aioembed.errors import (
    IncompatibleSpaces,
    InvalidConfig,
    InvalidUserInput,
    WrongDimensions,
)
from aioembed.index import EmbeddingIndex

from .conftest import SPACE

pytestmark = pytest.mark.anyio

_CHILD = Path(__file__).parent / "children" / "endless_writer.py"


def _unit(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _write_until_killed(path: Path) -> int:
    """Let a child write, kill it in the middle, and return how many vectors it had committed."""
    command = [sys.executable, str(_CHILD), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(5)]
        child.kill()
        told += [int(line) for line in child.stdout.read().split()]
    return told[-1]


async def test_what_is_added_is_found_after_reopening(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        assert (index.space, index.embedding_dim) == (SPACE, None)
        await index.add("x", [1, 0, 0])
        await index.add_many([("y", [0, 1, 0]), ("xy", [1, 1, 0])])
    async with EmbeddingIndex(index_file) as index:
        hits = await index.search([2, 0, 0], k=2)
        assert (index.space, index.embedding_dim) == (SPACE, 3)
        assert [hit.key for hit in hits] == ["x", "xy"]
        assert [hit.similarity for hit in hits] == pytest.approx([1, 0.5**0.5])


async def test_a_key_has_one_vector_and_the_last_one_counts(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
        await index.add_many([("x", [1, 1]), ("x", [0, 1])])
        assert await index.count() == 1
        assert (await index.search([0, 1]))[0].similarity == pytest.approx(1)
        stored = await index.get("x")
        assert stored is not None
        np.testing.assert_array_equal(stored, np.array([0, 1], np.float32))


async def test_removed_vectors_are_not_found(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many([(key, [1, number]) for number, key in enumerate("abc")])
        assert await index.remove("a", "b", "none") == 2
        assert await index.keys() == ["c"]
        assert await index.get("a") is None
        assert not await index.contains("a")
        assert await index.contains("c")
        assert [hit.key for hit in await index.search([1, 0])] == ["c"]


async def test_keys_are_listed_by_prefix(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many([(key, [1.0]) for key in ("b/1", "a/2", "a/1", "a%")])
        assert await index.keys("a/") == ["a/1", "a/2"]
        assert await index.keys("a%") == ["a%"]


async def test_a_search_finds_exactly_what_numpy_finds(index_file: Path) -> None:
    rows, queries = _unit(3000, 96), _unit(20, 96, seed=1)
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many((str(number), row) for number, row in enumerate(rows))
        for query in queries:
            hits = await index.search(query, k=25)
            similarities = rows @ query
            best = np.argsort(-similarities)[:25]
            assert [hit.key for hit in hits] == [str(number) for number in best]
            found = [hit.similarity for hit in hits]
            np.testing.assert_allclose(found, similarities[best], atol=2e-6)


async def test_an_empty_index_finds_nothing(index_file: Path) -> None:
    async with EmbeddingIndex(index_file) as index:
        assert await index.search([1, 0]) == []
        assert (await index.count(), await index.keys(), await index.get("x")) == (0, [], None)
        assert index.space is None


async def test_vectors_that_cannot_be_stored_leave_nothing_behind(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
        with pytest.raises(WrongDimensions, match=r"\(2,\)"):
            await index.add_many([("y", [1, 0]), ("z", [1, 0, 0])])
        with pytest.raises(InvalidUserInput, match="direction"):
            await index.add_many([("y", [1, 0]), ("z", [0, 0])])
        for key in ("", "\ud800", 7):
            with pytest.raises(InvalidUserInput, match="a key is a text"):
                await index.add(key, [1, 0])  # type: ignore[arg-type]
        with pytest.raises(WrongDimensions):
            await index.search([[1, 0]])
        for k in (0, 4097):
            with pytest.raises(InvalidConfig):
                await index.search([1, 0], k)
        assert await index.keys() == ["x"]


async def test_a_new_file_wants_to_know_the_space(index_file: Path) -> None:
    async with EmbeddingIndex(index_file) as index:
        with pytest.raises(InvalidConfig, match=r"space=model\.space"):
            await index.add("x", [1, 0])


async def test_another_space_is_refused_and_another_precision_may_only_search(
    index_file: Path,
) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("x", [1, 0])
    with pytest.raises(IncompatibleSpaces, match="do not compare"):
        async with EmbeddingIndex(index_file, space=EmbeddingSpace(base="f" * 16)):
            raise AssertionError("it was opened")
    async with EmbeddingIndex(
        index_file, space=EmbeddingSpace(base=SPACE.base, precision="int8")
    ) as index:
        assert [hit.key for hit in await index.search([1, 0])] == ["x"]
        with pytest.raises(IncompatibleSpaces, match=r"int8"):
            await index.add("y", [1, 0])


async def test_two_that_open_a_new_file_see_each_others_vectors(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as one, EmbeddingIndex(index_file) as other:
        await one.add("x", [1, 0])
        assert [hit.key for hit in await other.search([1, 0])] == ["x"]
        await other.add("y", [0, 1])
        assert await one.keys() == ["x", "y"]


async def test_many_tasks_write_and_search_at_the_same_time(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add("first", [1, 0])

        async def write(number: int) -> None:
            await index.add(f"{number % 20}", [1, number])
            assert await index.search([1, number])

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(write, number)
        assert await index.count() == 21


async def test_a_closed_index_says_so(index_file: Path) -> None:
    index = EmbeddingIndex(index_file, space=SPACE)
    with pytest.raises(InvalidConfig, match="async with"):
        await index.count()
    async with index:
        with pytest.raises(InvalidConfig, match="already"):
            await index.__aenter__()
        assert await index.count() == 0


async def test_nothing_committed_is_lost_by_a_kill_in_mid_write(index_file: Path) -> None:
    """The writer says after each commit how far it is; killed at any time, so much is there."""
    for _ in range(3):
        committed = await anyio.to_thread.run_sync(_write_until_killed, index_file)
        async with EmbeddingIndex(index_file) as index:
            keys = await index.keys()
            assert len(keys) % 50 == 0, "a transaction was half kept"
            assert len(keys) >= committed
            hits = await index.search(_unit(1, 64)[0], k=min(len(keys), 4096))
            assert len({hit.key for hit in hits}) == len(keys)
            await index.remove(*keys)
