"""How close the pixels, and CLIP-architecture vectors of them, are to the references.

    python benchmarks/parity.py [--photographs FOLDER] [--no-vectors]

`rne` against `cv2.resize`, `clip` against the transformers CLIP image processor (its Pillow
backend), on photographs and on noise of awkward sizes. Differences are in steps of 1/255. The
vectors are those of transformers' CLIP ViT-B/32 with random weights of a fixed seed. The model is
the same on both sides, so the cosine is the effect of the difference in pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aioembed.images import SourcePolicy, decode, preprocess
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING

Embed = Callable[[np.ndarray], np.ndarray]
SIZES = ((1, 1), (1, 2), (3, 7), (1, 5000), (5000, 1), (112, 112), (223, 225), (225, 223),
         (224, 224), (448, 448), (301, 99), (1000, 777), (1234, 57), (2000, 3000))  # fmt: skip
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)[:, None, None]
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)[:, None, None]


def clip_tower() -> Embed:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config: Any = CLIPVisionConfig(patch_size=32, projection_dim=512)
    model: Any = CLIPVisionModelWithProjection(config)
    model.eval()

    def embed(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            batch = torch.from_numpy(((pixels - MEAN) / STD)[None])
            return np.asarray(model(pixel_values=batch).image_embeds[0])

    return embed


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def images(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    policy = SourcePolicy.trusted()
    for path in sorted(folder.rglob("*.*g")):
        yield path.name, decode(path.read_bytes(), policy)
    for height, width in SIZES:
        rng = np.random.default_rng(height * 7919 + width)
        yield f"noise {width} x {height}", rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def opencv(rgb: np.ndarray) -> np.ndarray:
    return (cv2.resize(rgb, (224, 224)).astype(np.float32) / 255).transpose(2, 0, 1)


def transformers_clip(rgb: np.ndarray) -> np.ndarray:
    processor: Any = CLIPImageProcessorPil(do_normalize=False)
    return np.asarray(processor(Image.fromarray(rgb))["pixel_values"][0], np.float32)


def row(name: str, ours: np.ndarray, reference: np.ndarray, embed: Embed | None) -> np.ndarray:
    apart = np.abs(ours - reference) * 255
    alike = cosine(embed(ours), embed(reference)) if embed else float("nan")
    beyond = float((apart > 1.01).mean())
    print(f"{name:32}{apart.max():8.2f}{apart.mean():9.4f}{beyond:10.5f}{alike:12.7f}")
    return np.array((apart.max(), apart.mean(), beyond, -alike))


def table(title: str, rows: Iterator[np.ndarray]) -> None:
    print(f"\n{title}\n{'':32}{'max':>8}{'mean':>9}{'beyond 1':>10}{'cosine':>12}")
    worst = np.max(list(rows), axis=0)
    print(f"{'worst':32}{worst[0]:8.2f}{worst[1]:9.4f}{worst[2]:10.5f}{-worst[3]:12.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).resolve().parents[2] / "shared" / "images"
    parser.add_argument("--photographs", type=Path, default=shared)
    parser.add_argument("--no-vectors", action="store_true")
    options = parser.parse_args()
    embed = None if options.no_vectors else clip_tower()
    folder = options.photographs
    table(
        "rne against cv2.resize",
        (row(name, preprocess(rgb, RNE_PREPROCESSING)[0], opencv(rgb), embed)
         for name, rgb in images(folder)),
    )  # fmt: skip
    table(
        "clip against transformers",
        (row(name, preprocess(rgb, CLIP_PREPROCESSING)[0], transformers_clip(rgb), embed)
         for name, rgb in images(folder)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
