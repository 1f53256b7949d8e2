"""What the tests of Ray look at, in its own process: Ray's own code warns, and it has threads.

It prints one JSON object. What is kept between actors lies in the folder it is given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from aioembed import EFFICIENTNET_LITE0, ImageEmbeddings, Threads
from aioembed.errors import AioembedError
from aioembed.integrations import ray as bridge
from aioembed.integrations.ray import ImageEmbedder, embed_images
from aioembed.runtime import thread_count

IMAGES = 400


def pictures() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(5).integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def dataset() -> ray.data.Dataset:
    return ray.data.from_items(
        [{"number": number, "image": image} for number, image in enumerate(pictures())],
        override_num_blocks=20,
    )


class Mortal(ImageEmbedder):
    """Is killed once, in the middle."""

    def __init__(self, *args: Any, folder: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._folder = Path(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        done = super().__call__(batch)
        if IMAGES // 2 in batch["number"].to_pylist() and not (self._folder / "killed").exists():
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done


class Telling(ImageEmbedder):
    """Reports the threads that its model uses."""

    def __init__(self, **options: Any) -> None:
        with mock.patch.object(bridge, "ImageEmbeddings", wraps=ImageEmbeddings) as made:
            super().__init__(**options)
        self.threads: Threads | None = made.call_args.kwargs.get("threads")

    def __call__(self, batch: pa.Table) -> pa.Table:
        done = super().__call__(batch)
        assert self.threads is not None
        told = f"{self.threads.inference} {self.threads.preprocess}"
        told += f" {thread_count()} {os.getpid()}"
        return done.append_column("told", pa.array([told] * done.num_rows))


def outcome(done: ray.data.Dataset, local: NDArray[np.float32]) -> dict[str, Any]:
    rows = sorted(done.take_all(), key=lambda row: int(row["number"]))
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    return {
        "numbers": [row["number"] for row in rows] == list(range(IMAGES)),
        "errors": sum(row["error"] is not None for row in rows),
        "difference": float(np.abs(vectors - local).max()),
    }


async def local_embeddings() -> NDArray[np.float32]:
    async with ImageEmbeddings(EFFICIENTNET_LITE0) as model:
        return await model.forward_batch(pictures())


def killed(folder: Path, local: NDArray[np.float32]) -> dict[str, Any]:
    done = dataset().map_batches(
        Mortal,
        fn_constructor_kwargs={"folder": str(folder), "keep_images": False},
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    return outcome(done, local) | {"killed": (folder / "killed").exists()}


def told(cpus: int) -> list[int]:
    done = (
        dataset()
        .limit(4)
        .map_batches(
            Telling,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=cpus,
        )
    )
    threads, decoders, pool, process = map(int, done.take(1)[0]["told"].split())
    return [threads, decoders, pool, process != os.getpid()]


def broken_rows() -> list[str | None]:
    rows = [{"image": b"no image"}, {"image": b""}, {"image": None}]
    done = embed_images(ray.data.from_items(rows), batch_size=2, keep_images=False)
    return [row["error"] for row in done.take_all()]


def missing_model(folder: Path) -> bool:
    try:
        embed_images(dataset().limit(1), str(folder / "missing.pte")).take_all()
    except Exception as error:  # noqa: BLE001  # whatever Ray wraps it in
        return "ModelFileUnreadable" in str(error) or isinstance(error, AioembedError)
    return False


def session_name() -> Any:
    node: Any = ray._private.worker._global_node
    return node._session_name


def main(folder: Path) -> None:
    local = anyio.run(local_embeddings)
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        found = {
            "plain": outcome(embed_images(dataset(), actors=2, keep_images=False), local),
            "killed": killed(folder, local),
            "one_cpu": told(1),
            "two_cpus": told(2),
            "broken_rows": broken_rows(),
            "missing_model": missing_model(folder),
            "driver_has_no_cpus": Telling().threads,
            "session": session_name(),
        }
    finally:
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
