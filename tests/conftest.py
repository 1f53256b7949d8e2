"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

_PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "images"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests cache and index out of the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOEMBED_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on both event loops."""
    return str(request.param)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder of real photographs, where the checkout has one beside it."""
    if not _PHOTOGRAPHS.is_dir():
        pytest.skip("no folder of photographs beside the checkout")
    return _PHOTOGRAPHS
