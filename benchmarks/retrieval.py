"""How often a picture's nearest neighbours are of the same group, and whether its copies find it.

    python benchmarks/retrieval.py FOLDER [--model efficientnet-lite0] [--duplicates 100]

The pictures of FOLDER are named by class: what stands before the first `_` of a file's name is its
class, such as `n02085620_chihuahua.jpg`. Classes are grouped by ImageNet's synset numbers (dogs,
cats, birds); others stand in the gallery without a group. Prints precision at 1 and 5
for each group among all pictures, what chance would give, and the recall at 1 of near-duplicates
that are made from the first `--duplicates` pictures.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import anyio
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from aioembed import ImageEmbeddings

GROUPS = {
    "dogs": [(2085620, 2113978)],
    "cats": [(2123045, 2130308)],
    "birds": [(1514668, 1622779), (1795545, 2058221)],
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def group_of(path: Path) -> str | None:
    number = path.name.partition("_")[0].removeprefix("n")
    if not number.isdigit():
        return None
    for name, ranges in GROUPS.items():
        if any(first <= int(number) <= last for first, last in ranges):
            return name
    return None


def copies(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    left, top = width // 10, height // 10
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=20)
    captioned = image.copy()
    captioned.paste((0, 0, 0), (0, height - height // 7, width, height))
    return {
        "JPEG quality 20": Image.open(jpeg).convert("RGB"),
        "half the size": image.resize((width // 2, height // 2)),
        "cropped by 20 %": image.crop((left, top, width - left, height - top)),
        "brighter": ImageEnhance.Brightness(image).enhance(1.4),
        "greyscale": image.convert("L").convert("RGB"),
        "mirrored": ImageOps.mirror(image),
        "caption bar": captioned,
    }


async def main(paths: list[Path], model_source: str, duplicates: int) -> None:
    groups = np.array([group_of(path) or "" for path in paths])
    async with ImageEmbeddings(model_source) as model:
        vectors = np.stack([await model.forward(path) for path in paths])
        recall: dict[str, list[bool]] = {}
        for number, path in enumerate(paths[:duplicates]):
            for kind, copy in copies(Image.open(path).convert("RGB")).items():
                nearest = int(np.argmax(vectors @ await model.forward(copy)))
                recall.setdefault(kind, []).append(nearest == number)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    order = np.argsort(-scores, axis=1)[:, :5]
    print(f"{len(paths)} pictures, {model_source}\n")
    print(f"{'group':18}{'pictures':>9}{'P@1':>8}{'P@5':>8}{'chance':>8}")
    for name in GROUPS:
        of_group = np.flatnonzero(groups == name)
        if len(of_group) < 2:
            continue
        hits = groups[order[of_group]] == name
        chance = (len(of_group) - 1) / (len(paths) - 1)
        print(f"{name:18}{len(of_group):9}{hits[:, 0].mean():8.3f}{hits.mean():8.3f}{chance:8.3f}")
    print(f"\n{'near-duplicate':18}{'recall@1':>9}")
    for kind, found in recall.items():
        print(f"{kind:18}{np.mean(found):9.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="efficientnet-lite0", help="a name, URL or path")
    parser.add_argument("--duplicates", type=int, default=100)
    options = parser.parse_args()
    pictures = sorted(one for one in options.folder.iterdir() if one.suffix.lower() in SUFFIXES)
    if not pictures:
        parser.error(f"no pictures in {options.folder}")
    anyio.run(main, pictures, options.model, options.duplicates)
