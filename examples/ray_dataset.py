"""Embed a folder of images to Parquet files, on all machines of a Ray cluster.

    python examples/ray_dataset.py demo                              # offline, on this machine
    python examples/ray_dataset.py embed FOLDER OUTPUT --actors 2    # --model clip-...

On a cluster the folder, the output and the model's cache must be reachable from each machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow.dataset
import ray
import ray.data
from ray.data import SaveMode
from sample_images import fill

from aioembed.integrations.ray import embed_images


def embed(
    folder: Path, output: Path, *, model: str = "efficientnet-lite0", actors: int = 2
) -> None:
    """Write a row for each file: its path, and its vector or its error.

    Parquet files of an earlier run in the same place are replaced.
    """
    paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    images = ray.data.from_items([{"path": path} for path in paths])
    embedded = embed_images(images, model, actors=actors, image_column="path")
    embedded.write_parquet(str(output), mode=SaveMode.OVERWRITE)


def demo(images: int = 200) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name, "images"), Path(name, "vectors")
        folder.mkdir()
        written = list(fill(folder, images))
        written[7].write_bytes(b"not an image")
        for _ in range(2):  # the second run replaces the first one's rows
            embed(folder, output)
        table = pyarrow.dataset.dataset(output).to_table()
        print(f"{table.num_rows} rows, {table['embedding'].null_count} without a vector")
        print(*(error for error in table["error"].to_pylist() if error), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo")
    embedding = commands.add_parser("embed")
    embedding.add_argument("folder", type=Path)
    embedding.add_argument("output", type=Path)
    embedding.add_argument("--model", default="efficientnet-lite0")
    embedding.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    if options.command == "demo":
        ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
        demo()
    else:
        ray.init()
        embed(options.folder, options.output, model=options.model, actors=options.actors)
    ray.shutdown()


if __name__ == "__main__":
    main()
