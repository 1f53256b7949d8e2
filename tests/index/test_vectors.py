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
        with pytest.raises(InvalidConfig):
            await index.search([1, 0], 0)
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


def _size(path: Path) -> int:
    return path.stat().st_size


def _clustered(count: int, dim: int) -> NDArray[np.float32]:
    """Rows near a few directions, as photographs' are, with a mean far from zero."""
    rng = np.random.default_rng(5)
    axes = rng.standard_normal((40, dim), dtype=np.float32) * np.geomspace(3, 0.3, 40)[:, None]
    rows = rng.standard_normal((count, 40), dtype=np.float32) @ axes
    rows += rng.standard_normal(dim) * 3 + 0.1 * rng.standard_normal((count, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


async def test_many_vectors_are_found_by_their_sketches(index_file: Path) -> None:
    """Added, replaced, removed, through another handle: sketches never fall behind."""
    rows = _clustered(9000, 200)
    async with (
        EmbeddingIndex(index_file, space=SPACE) as index,
        EmbeddingIndex(index_file) as other,
    ):
        await index.add_many((str(number), row) for number, row in enumerate(rows[:5000]))
        assert (await other.search(rows[7], 1))[0].key == "7"
        await index.add_many((str(number), row) for number, row in enumerate(rows[5000:], 5000))
        await index.add("7", rows[8500])
        await index.remove("8501")
        rows[7] = rows[8500]
        found = 0
        for query in range(0, 9000, 450):
            similarities = rows @ rows[query]
            similarities[8501] = -1
            best = {str(number) for number in np.argsort(-similarities, kind="stable")[:10]}
            hits = await other.search(rows[query], 10)
            found += len(best & {hit.key for hit in hits})
            assert hits[0].similarity == pytest.approx(1, abs=1e-5)
            assert [hit.similarity for hit in hits] == sorted(
                (hit.similarity for hit in hits), reverse=True
            )
        assert found >= 198
        assert {hit.key for hit in await other.search(rows[8500], 2)} == {"7", "8500"}


async def test_hits_below_the_least_similarity_are_left_out(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many([("x", [1, 0]), ("y", [0, 1]), ("xy", [1, 1])])
        hits = await index.search([1, 0], min_similarity=0.5)
        assert [hit.key for hit in hits] == ["x", "xy"]


@pytest.mark.parametrize("count", [300, 6000], ids=["few", "with sketches"])
async def test_duplicates_are_found_in_groups(index_file: Path, count: int) -> None:
    rows = _clustered(count, 128) * 3
    rng = np.random.default_rng(8)
    for start, copies in ((10, 4), (100, 2)):
        near = rows[start] + 0.004 * rng.standard_normal((copies, 128))
        rows[start + 1 : start + 1 + copies] = near
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many((f"/a/{number:05}", row) for number, row in enumerate(rows))
        groups = await index.duplicates(above=0.998)
        wanted = (unit @ unit.T >= 0.998).sum() - count
        assert [[int(hit.key[3:]) for hit in group] for group in groups[:2]] == [
            [10, 11, 12, 13, 14],
            [100, 101, 102],
        ]
        assert wanted == 20 + 6, "there are no others"
        assert len(groups) == 2
        assert groups[0][0].similarity == pytest.approx(1)
        assert all(hit.similarity > 0.99 for hit in groups[0])
        assert await index.duplicates("/b", above=0.998) == []
        for above in (0, 1.5):
            with pytest.raises(InvalidConfig):
                await index.duplicates(above=above)


async def test_the_file_shrinks_when_much_is_removed(index_file: Path) -> None:
    async with EmbeddingIndex(index_file, space=SPACE) as index:
        await index.add_many((f"/a/{number}", row) for number, row in enumerate(_unit(2000, 512)))
        full = _size(index_file)
        assert (await index.info()).size_bytes == full
        await index.forget("/a")
        assert await index.count() == 0
        assert _size(index_file) < full / 10
