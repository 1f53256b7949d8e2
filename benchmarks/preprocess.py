"""JPEG to tensor, against Pillow, the transformers processor and OpenCV, on one thread each.

    python benchmarks/preprocess.py [--rounds 7] [--photographs FOLDER]

Prints, for 12 and 48 megapixels, the median processor time of each path, its ratio to this
library's, and how far its pixels are from this library's. Peers that are not installed are left
out. `decoder alone` is the part of this library's time that Pillow's JPEG decoder takes, at the
size it decodes to. `gist` is the embedded model's way, to 96 x 96. Below each table: whether this
library is no slower than the fastest peer of the same pixels, and, where the decoder scales, three
times as fast as plain Pillow.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aioembed.images import SourcePolicy
from aioembed.images.decode import open_encoded
from aioembed.images.preprocess import program_input, smallest_enough
from aioembed.spec import CLIP_PREPROCESSING, RNE_PREPROCESSING, Preprocessing

Path_ = Callable[[bytes], np.ndarray]
GIST_PREPROCESSING = Preprocessing(
    height=96, width=96, resize="stretch", interpolation="bilinear", antialias=True
)
"""Of the embedded model."""

DECODER = "decoder alone"
TIMES_PILLOW = 3.0
NO_SLOWER = 0.99
"""What two medians of the same path can differ by."""
SIZES = {"12 megapixels": (4000, 3000), "48 megapixels": (8000, 6000)}


def ours(preprocessing: Preprocessing) -> Path_:
    policy = SourcePolicy.trusted()

    def run(data: bytes) -> np.ndarray:
        stored = open_encoded(data, policy).load(smallest_enough(preprocessing))
        return np.asarray(program_input(stored, preprocessing)[0])

    return run


def decoder(preprocessing: Preprocessing, data: bytes) -> tuple[str, Path_]:
    """Return the label and the work of Pillow's decoder for a path of this library."""
    policy = SourcePolicy.trusted()
    shrunk = open_encoded(data, policy).load(smallest_enough(preprocessing)).shrunk

    def run(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if shrunk > 1:
            image.draft(None, (image.width // shrunk, image.height // shrunk))
        image.load()
        return np.empty(0)

    return f"{DECODER}, 1/{shrunk}", run


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


def transformers_clip() -> Path_ | None:
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:
        return None
    processor: Any = CLIPImageProcessorPil(do_normalize=False)

    def run(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(processor(image)["pixel_values"][0])

    return run


def opencv_stretch() -> Path_ | None:
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)

    def run(data: bytes) -> np.ndarray:
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        pixels = cv2.resize(image, (224, 224))
        return np.ascontiguousarray((pixels.astype(np.float32) / 255).transpose(2, 0, 1))

    return run


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


def jpeg(image: Image.Image, subsampling: str) -> bytes:
    buffer = io.BytesIO()
    if subsampling == "grey":
        image.convert("L").save(buffer, "JPEG", quality=90)
    else:
        image.save(buffer, "JPEG", quality=90, subsampling=subsampling)
    return buffer.getvalue()


def medians(paths: dict[str, Path_], data: bytes, rounds: int) -> dict[str, float]:
    """Return the median times; the order changes, as each path leaves memory for the next."""
    taken: dict[str, list[float]] = {name: [] for name in paths}
    dice = random.Random(0)
    for _ in range(rounds):
        for name in dice.sample(sorted(paths), len(paths)):
            begin = time.thread_time()
            paths[name](data)
            taken[name].append(time.thread_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def report(title: str, paths: Mapping[str, Path_ | None], data: bytes, rounds: int) -> None:
    present = {name: path for name, path in paths.items() if path}
    reference = present["aioembed"](data)
    times = medians(present, data, rounds)
    print(f"\n{title}\n{'':22}{'ms':>8}{'ratio':>8}   largest / mean difference, in 1/255")
    same = []
    for name, path in present.items():
        pixels = path(data)
        ratio = times[name] / times["aioembed"]
        apart = np.abs(pixels - reference) * 255 if pixels.size else None
        found = "" if apart is None else f"{apart.max():.0f} / {apart.mean():.3f}"
        print(f"{name:22}{times[name] * 1000:8.1f}{ratio:7.2f}x   {found}")
        if apart is not None and apart.max() < 1.5 and name != "aioembed":
            same.append(ratio)
    judge("no slower than the fastest peer of the same pixels", min(same, default=None), NO_SLOWER)
    if "Pillow" in present and not any(name == f"{DECODER}, 1/1" for name in present):
        judge("plain Pillow, where the decoder scales", times["Pillow"] / times["aioembed"])


def judge(goal: str, ratio: float | None, least: float = TIMES_PILLOW) -> None:
    if ratio is not None:
        print(f"{'met' if ratio >= least else 'MISSED'}: {goal}: {ratio:.2f}x, {least:.2f}x wanted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    shared = Path(__file__).resolve().parents[2] / "shared" / "images"
    parser.add_argument("--photographs", type=Path, default=shared)
    options = parser.parse_args()
    for title, size in SIZES.items():
        image = scene(size, options.photographs)
        for subsampling in ("4:2:0", "4:4:4", "grey"):
            data = jpeg(image, subsampling)
            about = f"{title}, {subsampling}, {len(data) / 1e6:.1f} MB"
            stretch = {
                "aioembed": ours(RNE_PREPROCESSING),
                **dict((decoder(RNE_PREPROCESSING, data),)),
                "OpenCV": opencv_stretch(),
                "Pillow (antialiased)": pillow_stretch(224),
            }
            report(f"rne, {about}", stretch, data, options.rounds)
            crop = {
                "aioembed": ours(CLIP_PREPROCESSING),
                **dict((decoder(CLIP_PREPROCESSING, data),)),
                "Pillow": pillow_clip,
                "transformers": transformers_clip(),
            }
            report(f"clip, {about}", crop, data, options.rounds)
            small = {
                "aioembed": ours(GIST_PREPROCESSING),
                **dict((decoder(GIST_PREPROCESSING, data),)),
                "Pillow": pillow_stretch(96),
            }
            report(f"gist, {about}", small, data, options.rounds)


if __name__ == "__main__":
    main()
