"""The library with pytest-asyncio's fixtures of every scope, as its users have them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from aioembed import ImageEmbeddings

_PROGRAM = Path(__file__).parent / "programs/tiny_clip_image.pte"
_PIXELS = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def opened() -> ImageEmbeddings:
    return ImageEmbeddings(_PROGRAM, threads=1)


@pytest_asyncio.fixture(scope="function", loop_scope="function")
async def function_model() -> AsyncIterator[ImageEmbeddings]:
    async with opened() as model:
        yield model


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def class_model() -> AsyncIterator[ImageEmbeddings]:
    async with opened() as model:
        yield model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_model() -> AsyncIterator[ImageEmbeddings]:
    async with opened() as model:
        yield model


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_model() -> AsyncIterator[ImageEmbeddings]:
    async with opened() as model:
        yield model


@pytest_asyncio.fixture
async def hooked_model() -> AsyncIterator[ImageEmbeddings]:
    """Started and stopped by calls, as an application's hooks do it."""
    model = opened()
    await model.load()
    yield model
    await model.aclose()


async def embeds(model: ImageEmbeddings) -> None:
    assert (await model.wait_for("ready")).is_ready
    vector = await model.forward(_PIXELS)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.asyncio
async def test_a_fixture_of_a_functions_scope(function_model: ImageEmbeddings) -> None:
    await embeds(function_model)


@pytest.mark.asyncio
async def test_a_fixture_with_hooks(hooked_model: ImageEmbeddings) -> None:
    await embeds(hooked_model)


@pytest.mark.asyncio(loop_scope="class")
class TestClass:
    """Two tests that share a model."""

    async def test_a_fixture_of_a_classs_scope(self, class_model: ImageEmbeddings) -> None:
        await embeds(class_model)

    async def test_another_test_uses_it(self, class_model: ImageEmbeddings) -> None:
        await embeds(class_model)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_fixture_of_a_modules_scope(module_model: ImageEmbeddings) -> None:
    await embeds(module_model)


@pytest.mark.asyncio(loop_scope="module")
async def test_another_test_uses_it(module_model: ImageEmbeddings) -> None:
    await embeds(module_model)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_fixture_of_a_sessions_scope(session_model: ImageEmbeddings) -> None:
    await embeds(session_model)
