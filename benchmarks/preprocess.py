"""JPEG to tensor, against Pillow, the transformers processor and OpenCV, on one thread each.

    python benchmarks/preprocess.py [--rounds 7] [--quality 92] [--ways rne clip thumbnail]
        [--photographs FOLDER]

Prints, for 12 and 48 megapixels, the median processor time of each path, its ratio to this
library's, and how far its pixels are from this library's. Peers that are not installed are left
out. `decoder alone` is the part of this library's time that Pillow's JPEG decoder takes.
`thumbnail` is to 96 x 96. Below each table: whether this library is no slower than the
fastest peer of the same pixels. The paths alternate, each in its own process, so that none uses
memory that another has freed.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aioembed.images import SourcePolicy
from aioembed.images.decode import open_encoded
from aioembed.images.preprocess import program_input
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING, Preprocessing

Path_ = Callable[[bytes], np.ndarray]
Maker = Callable[[], Path_]
THUMBNAIL_PREPROCESSING = Preprocessing(
    height=96, width=96, resize="stretch", interpolation="bilinear", antialias=True
)
"""Of a small model."""

US, DECODER = "aioembed", "decoder alone"
NO_SLOWER = 0.99
"""What two medians of the same path can differ by."""
SUBSAMPLINGS = ("4:2:0", "4:4:4", "grey")
SIZES = {"12 megapixels": (4000, 3000), "48 megapixels": (8000, 6000)}


def ours(preprocessing: Preprocessing) -> Path_:
    policy = SourcePolicy.trusted()

    def run(data: bytes) -> np.ndarray:
        stored = open_encoded(data, policy).load()
        return np.asarray(program_input(stored, preprocessing)[0])

    return run


def decoder() -> Path_:
    policy = SourcePolicy.trusted()

    def run(data: bytes) -> np.ndarray:
        open_encoded(data, policy).load()
        return np.empty(0)

    return run


def pillow_clip(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    size = (int(224 * width / short), int(224 * height / short))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    return np.ascontiguousarray((pixels.astype(np.float32) / 255).transpose(2, 0, 1))


def pillow_stretch(side: int) -> Path_:
    def run(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        return np.ascontiguousarray((pixels.astype(np.float32) / 255).transpose(2, 0, 1))

    return run


def transformers_clip() -> Path_:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor: Any = CLIPImageProcessorPil(do_normalize=False)

    def run(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(processor(image)["pixel_values"][0])

    return run


def opencv_stretch() -> Path_:
    import cv2

    cv2.setNumThreads(1)

    def run(data: bytes) -> np.ndarray:
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        pixels = cv2.resize(image, (224, 224))
        return np.ascontiguousarray((pixels.astype(np.float32) / 255).transpose(2, 0, 1))

    return run


WAYS: dict[str, tuple[Preprocessing, dict[str, Maker]]] = {
    "rne": (
        RNE_PREPROCESSING,
        {"OpenCV": opencv_stretch, "Pillow (antialiased)": partial(pillow_stretch, 224)},
    ),
    "clip": (
        CLIP_PREPROCESSING,
        {"Pillow": lambda: pillow_clip, "transformers": transformers_clip},
    ),
    "thumbnail": (THUMBNAIL_PREPROCESSING, {"Pillow": partial(pillow_stretch, 96)}),
}
NEEDED = {"OpenCV": "cv2", "transformers": "transformers"}


def paths_of(way: str) -> dict[str, Maker]:
    preprocessing, peers = WAYS[way]
    present = {name: peer for name, peer in peers.items() if find_spec(NEEDED.get(name, "PIL"))}
    return {US: partial(ours, preprocessing), DECODER: decoder, **present}


def work(way: str, name: str, orders: Connection) -> None:
    """Answer each order, the bytes of a JPEG, with processor time in seconds and pixels."""
    path = paths_of(way)[name]()
    while data := orders.recv_bytes():
        begin = time.thread_time()
        pixels = path(data)
        taken = time.thread_time() - begin
        orders.send((taken, pixels))


@contextmanager
def processes(way: str) -> Iterator[dict[str, Connection]]:
    """Start a process for each path; they end with the block."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        found = {}
        for name in paths_of(way):
            found[name], orders = context.Pipe()
            process = context.Process(target=work, args=(way, name, orders))
            process.start()
            stack.callback(process.join)
            stack.callback(found[name].send_bytes, b"")
        yield found


def scene(size: tuple[int, int], folder: Path | None) -> Image.Image:
    """Return photographs side by side, each at its own size, or drawn textures."""
    rng = np.random.default_rng(0)
    names = sorted(folder.glob("*.*g")) if folder and folder.is_dir() else []
    tiles = [Image.open(name).convert("RGB") for name in names]
    if not tiles:
        ramp = np.add.outer(np.arange(400), np.arange(600)) / 4
        waves = np.stack([120 + 80 * np.sin(ramp / period) for period in (3, 11, 40)], -1)
        grain = rng.normal(0, 8, waves.shape)
        tiles = [Image.fromarray(np.clip(waves + grain, 0, 255).astype(np.uint8))]
    canvas = Image.new("RGB", size)
    for top in range(0, size[1], 400):
        for left in range(0, size[0], 500):
            tile = tiles[rng.integers(len(tiles))]
            x, y = (int(rng.integers(max(1, side - 400))) for side in tile.size)
            canvas.paste(tile.crop((x, y, x + 500, y + 400)), (left, top))
    return canvas


def jpeg(image: Image.Image, subsampling: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if subsampling == "grey":
        image.convert("L").save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def run(path: Connection, data: bytes) -> tuple[float, np.ndarray]:
    path.send_bytes(data)
    taken: tuple[float, np.ndarray] = path.recv()
    return taken


def medians(paths: Mapping[str, Connection], data: bytes, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in paths}
    dice = random.Random(0)
    for _ in range(rounds):
        for name in dice.sample(sorted(paths), len(paths)):
            taken[name].append(run(paths[name], data)[0])
    return {name: statistics.median(times) for name, times in taken.items()}


def report(way: str, paths: Mapping[str, Connection], about: str, data: bytes, rounds: int) -> None:
    pixels = {name: run(path, data)[1] for name, path in paths.items()}
    times = medians(paths, data, rounds)
    print(f"\n{way}, {about}\n{'':22}{'ms':>8}{'ratio':>8}   largest / mean difference, in 1/255")
    same = []
    for name, taken in times.items():
        ratio = taken / times[US]
        apart = np.abs(pixels[name] - pixels[US]) * 255 if pixels[name].size else None
        found = "" if apart is None else f"{apart.max():.0f} / {apart.mean():.3f}"
        print(f"{name:22}{taken * 1000:8.1f}{ratio:7.2f}x   {found}")
        if apart is not None and apart.max() < 1.5 and name != US:
            same.append(ratio)
    judge("no slower than the fastest peer of the same pixels", min(same, default=None), NO_SLOWER)


def judge(goal: str, ratio: float | None, least: float) -> None:
    if ratio is not None:
        print(f"{'met' if ratio >= least else 'MISSED'}: {goal}: {ratio:.2f}x, {least:.2f}x wanted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    shared = Path(__file__).resolve().parents[2] / "shared" / "images"
    parser.add_argument("--photographs", type=Path, default=shared)
    options = parser.parse_args()
    for title, size in SIZES.items():
        image = scene(size, options.photographs)
        jpegs = {
            subsampling: jpeg(image, subsampling, options.quality) for subsampling in SUBSAMPLINGS
        }
        for way in options.ways:
            with processes(way) as paths:
                for subsampling, data in jpegs.items():
                    about = f"{title}, {subsampling}, {len(data) / 1e6:.1f} MB"
                    report(way, paths, about, data, options.rounds)


if __name__ == "__main__":
    main()
