"""Watch a model being downloaded, loaded and used; runs without a network.

    python examples/download_progress.py

A hub on loopback replaces the real one, and is throttled to make the download visible.
"""

from __future__ import annotations

import tempfile

import anyio
from PIL import Image

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings, Status
from aioembed.models import local_path
from aioembed.testing import HubServer


async def watch(model: ImageEmbeddings) -> None:
    async for state in model.states():
        line = f"{state.status:11}"
        if state.status is Status.DOWNLOADING and state.total_bytes:
            filled = round(30 * state.download_progress)
            line += f" [{'#' * filled:30}] {state.download_progress:4.0%}"
            line += f" of {state.total_bytes / 1000:.0f} kB, {state.download_rate / 1000:.0f} kB/s"
        print(line)


async def main(folder: str) -> None:
    shipped = local_path(EFFICIENTNET_LITE0)
    assert shipped is not None
    content = await anyio.Path(shipped).read_bytes()
    async with HubServer(bytes_per_second=len(content) / 2) as hub:
        url = hub.add("someone/lite0", "efficientnet_lite0.pte", content)
        model = ImageEmbeddings(url, cache_dir=folder)
        async with anyio.create_task_group() as group:
            group.start_soon(watch, model)
            async with model:
                embedding = await model.forward(Image.new("RGB", (320, 240), "teal"))
                print(f"{'':11} a vector of {embedding.shape[0]} values")
            group.cancel_scope.cancel()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        anyio.run(main, cache)
