"""Text models that must be fetched: the program and its tokenizer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioembed import ModelSpec, Status
from aioembed.errors import IntegrityError, ResourceNotFound
from aioembed.testing import HubServer
from aioembed.text import TextEmbeddings

from .conftest import Vectors

pytestmark = pytest.mark.anyio

_REPOSITORY = "someone/tiny-text"


@pytest.fixture
async def hub() -> AsyncIterator[HubServer]:
    async with HubServer() as server:
        yield server


@pytest.fixture
def remote(hub: HubServer, padded_text: Path, tokenizer_file: Path) -> ModelSpec:
    """The tiny model on a hub, its tokenizer beside it."""
    return ModelSpec(
        name="tiny-text",
        source=hub.add(_REPOSITORY, "text.pte", padded_text.read_bytes()),
        modality="text",
        tokenizer_source=hub.add(_REPOSITORY, "tokenizer.json", tokenizer_file.read_bytes()),
    )


async def test_program_and_tokenizer_are_fetched_with_one_progress(
    hub: HubServer, remote: ModelSpec, tmp_path: Path, expected: Vectors
) -> None:
    progress: list[float] = []
    model = TextEmbeddings(remote, cache_dir=tmp_path)
    model.subscribe(lambda: progress.append(model.state.download_progress))
    async with model:
        vector = await model.forward("a photo of a cat")
        assert model.state.downloaded_bytes == model.state.total_bytes == hub.sent
    assert float(vector @ expected["a photo of a cat"]) >= 0.99999
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    asked = len(hub.requests)
    async with TextEmbeddings(remote, cache_dir=tmp_path, offline=True) as cached:
        await cached.forward("a photo of a cat")
    assert len(hub.requests) == asked


async def test_a_fetched_program_takes_a_tokenizer_from_this_machine(
    hub: HubServer, remote: ModelSpec, tmp_path: Path, tokenizer_file: Path, expected: Vectors
) -> None:
    async with TextEmbeddings(remote.source, tokenizer=tokenizer_file, cache_dir=tmp_path) as model:
        vector = await model.forward("a photo of a dog.")
    assert float(vector @ expected["a photo of a dog."]) >= 0.99999
    assert not any("tokenizer" in request.target for request in hub.requests)


async def test_a_tokenizer_that_the_hub_lacks_fails_the_load(
    hub: HubServer, remote: ModelSpec, tmp_path: Path
) -> None:
    missing = f"{hub.endpoint}/{_REPOSITORY}/resolve/main/absent.json"
    async with TextEmbeddings(remote, tokenizer=missing, cache_dir=tmp_path) as model:
        with pytest.raises(ResourceNotFound):
            await model.load()
        assert model.state.status is Status.FAILED


async def test_a_tokenizer_of_another_hash_than_published_is_refused(
    remote: ModelSpec, tmp_path: Path
) -> None:
    spec = remote.model_copy(update={"tokenizer_sha256": "0" * 64})
    async with TextEmbeddings(spec, cache_dir=tmp_path) as model:
        with pytest.raises(IntegrityError):
            await model.load()
