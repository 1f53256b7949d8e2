"""Models that must be fetched: the states on the way, pausing and cancelling, the trial run."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import pytest

from aioembed import ImageEmbeddings, ModelSpec, Status, TextEmbeddings
from aioembed import _probe as probing
from aioembed.download import Cache
from aioembed.errors import (
    AlreadyPaused,
    DownloadCancelled,
    DownloadFailed,
    IntegrityError,
    InvalidConfig,
    InvalidProgram,
    NotActive,
    OfflineError,
    ProbeFailed,
    ResourceNotFound,
)
from aioembed.testing import HubServer
from aioembed.testing._loopback import LoopbackServer, Request, file_reply

from ..programs import TINY_IMAGE_PROGRAM

pytestmark = pytest.mark.anyio

PROGRAM = TINY_IMAGE_PROGRAM.read_bytes()
PIXELS = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
async def hub() -> AsyncIterator[HubServer]:
    async with HubServer() as server:
        yield server


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def test_the_states_of_a_download_come_in_order_with_rising_progress(
    hub: HubServer, cache_dir: Path
) -> None:
    hub.bytes_per_second = len(PROGRAM) / 0.5
    url = hub.add("someone/model", "model.pte", PROGRAM)
    model = ImageEmbeddings(url, cache_dir=cache_dir)
    seen: list[tuple[Status, float, int]] = []

    def note() -> None:
        state = model.state
        seen.append((state.status, state.download_progress, state.downloaded_bytes))

    model.subscribe(note)
    async with model:
        assert (await model.forward(PIXELS)).shape == (512,)
    order = [status for place, (status, *_) in enumerate(seen) if status != seen[place - 1][0]]
    assert order[:5] == ["idle", "downloading", "loading", "ready", "generating"]
    progress = [fraction for status, fraction, _ in seen if status is Status.DOWNLOADING]
    assert progress == sorted(progress)
    assert len(set(progress)) > 3
    received = [count for *_, count in seen]
    assert received == sorted(received)
    assert received[-1] == len(PROGRAM)


async def test_a_cached_model_goes_straight_to_loading_without_network(
    hub: HubServer, cache_dir: Path
) -> None:
    url = hub.add("someone/model", "model.pte", PROGRAM)
    async with ImageEmbeddings(url, cache_dir=cache_dir) as first:
        await first.load()
    asked = len(hub.requests)
    async with ImageEmbeddings(url, cache_dir=cache_dir) as second:
        statuses: list[Status] = []
        second.subscribe(lambda: statuses.append(second.state.status))
        await second.load()
    assert Status.DOWNLOADING not in statuses
    assert second.state.download_progress == 1
    assert len(hub.requests) == asked


async def test_offline_and_not_cached_is_an_error_and_opens_no_socket(
    hub: HubServer, cache_dir: Path
) -> None:
    url = hub.add("someone/model", "model.pte", PROGRAM)
    async with ImageEmbeddings(url, cache_dir=cache_dir, offline=True) as model:
        with pytest.raises(OfflineError, match=r"model\.pte"):
            await model.load()
        assert isinstance(model.state.error, OfflineError)
    assert hub.requests == []


async def test_a_missing_file_fails_and_a_second_load_tries_again(
    hub: HubServer, cache_dir: Path
) -> None:
    async with ImageEmbeddings(f"{hub.endpoint}/a/b/resolve/main/x.pte", cache_dir=cache_dir) as m:
        with pytest.raises(ResourceNotFound):
            await m.load()
        assert m.state.status is Status.FAILED
        hub.add("a/b", "x.pte", PROGRAM)
        await m.load()
        assert m.state.is_ready


async def test_a_wrong_published_hash_is_refused(hub: HubServer, cache_dir: Path) -> None:
    url = hub.add("someone/model", "model.pte", PROGRAM)
    spec = ModelSpec(
        name="other", source=url, modality="image", sha256=hashlib.sha256(b"other").hexdigest()
    )
    async with ImageEmbeddings(spec, cache_dir=cache_dir) as model:
        with pytest.raises(IntegrityError):
            await model.load()
    assert await Cache(cache_dir).list() == ()


async def test_pause_resume_and_cancel(hub: HubServer, cache_dir: Path) -> None:
    hub.bytes_per_second = len(PROGRAM) / 60
    url = hub.add("someone/model", "model.pte", PROGRAM)
    async with ImageEmbeddings(url, cache_dir=cache_dir) as model:
        with pytest.raises(NotActive):
            model.pause_download()
        await model.wait_for(lambda state: state.downloaded_bytes > 0)
        model.pause_download()
        assert model.state.is_paused
        assert model.state.status is Status.DOWNLOADING
        with pytest.raises(AlreadyPaused):
            model.pause_download()
        model.resume_download()
        assert not model.state.is_paused
        model.cancel_download()
        with pytest.raises(DownloadCancelled):
            await model.load()
        assert model.state.status is Status.IDLE
        hub.bytes_per_second = None
        await model.load()
        assert model.state.is_ready


async def test_a_cancelled_load_keeps_what_arrived(hub: HubServer, cache_dir: Path) -> None:
    hub.bytes_per_second = len(PROGRAM) / 60
    url = hub.add("someone/model", "model.pte", PROGRAM)
    model = ImageEmbeddings(url, cache_dir=cache_dir)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(model.load)
        await model.wait_for(lambda state: state.downloaded_bytes > 0)
        tasks.cancel_scope.cancel()
    await model.wait_for(Status.IDLE)
    hub.bytes_per_second = None
    await model.load()
    assert hub.sent < 2 * len(PROGRAM)
    assert "range" in hub.storage_requests[-1].headers
    await model.aclose()


async def test_deleting_a_loaded_model_is_harmless(hub: HubServer, cache_dir: Path) -> None:
    url = hub.add("someone/model", "model.pte", PROGRAM)
    cache = Cache(cache_dir)
    async with ImageEmbeddings(url, cache_dir=cache_dir) as model:
        await model.load()
        (file,) = await cache.list()
        before = await model.forward(PIXELS)
        assert await cache.delete(file) > 0
        assert await cache.list() == ()
        assert (await model.forward(PIXELS)).tolist() == before.tolist()


class Plain:
    """A server that publishes no hash, so that its files are tried in a child first."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __call__(self, request: Request) -> object:
        return file_reply(request, self.content, etag='"1"')


async def test_an_unknown_program_is_tried_once_in_a_child_process(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    real = probing.probe

    async def noted(path: Path) -> None:
        tried.append(path)
        await real(path)

    monkeypatch.setattr("aioembed._loader.probe", noted)
    async with LoopbackServer(Plain(PROGRAM)) as server:  # type: ignore[arg-type]
        for _ in range(2):
            url = f"{server.origin}/model.pte"
            async with ImageEmbeddings(url, cache_dir=cache_dir) as model:
                await model.load()
    assert len(tried) == 1
    (file,) = await Cache(cache_dir).list()
    assert file.probed
    assert not file.trusted


async def test_a_program_that_kills_its_child_is_an_error_here(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "crash"
    package.mkdir()
    (package / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'try_program' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package))
    async with (
        LoopbackServer(Plain(PROGRAM)) as server,  # type: ignore[arg-type]
        ImageEmbeddings(f"{server.origin}/model.pte", cache_dir=cache_dir) as model,
    ):
        with pytest.raises(ProbeFailed, match="SIGSEGV"):
            await model.load()
        assert model.state.status is Status.FAILED
    assert await Cache(cache_dir).list() == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>" * 20, "page"),
        (PROGRAM[: len(PROGRAM) // 2], "."),
        (b"", "."),
    ],
    ids=["html", "truncated", "empty"],
)
async def test_a_download_that_is_not_a_program_is_refused_and_not_kept(
    cache_dir: Path, content: bytes, message: str
) -> None:
    async with (
        LoopbackServer(Plain(content)) as server,  # type: ignore[arg-type]
        ImageEmbeddings(f"{server.origin}/model.pte", cache_dir=cache_dir) as model,
    ):
        with pytest.raises((InvalidProgram, DownloadFailed), match=message):
            await model.load()
    assert await Cache(cache_dir).list() == ()


async def test_a_pinned_hash_is_required_of_a_download_and_of_a_file(
    hub: HubServer, cache_dir: Path
) -> None:
    url = hub.add("someone/model", "model.pte", PROGRAM)
    right, wrong = hashlib.sha256(PROGRAM).hexdigest(), "0" * 64
    for source in (url, TINY_IMAGE_PROGRAM):
        with pytest.raises(IntegrityError):
            await ImageEmbeddings(source, sha256=wrong, cache_dir=cache_dir).load()
        async with ImageEmbeddings(source, sha256=right, cache_dir=cache_dir) as model:
            assert (await model.forward(PIXELS)).shape == (512,)


@pytest.mark.parametrize("sha256", ["", "abc", "G" * 64, 7])
async def test_a_malformed_hash_is_an_invalid_config(sha256: str) -> None:
    with pytest.raises(InvalidConfig, match="sha256"):
        ImageEmbeddings(sha256=sha256)
    with pytest.raises(InvalidConfig, match="sha256"):
        TextEmbeddings("clip-vit-base-patch32-text", sha256=sha256)
