"""Decode every file of some folders with Pillow and with this library, and list the differences.

    python benchmarks/compare_with_pillow.py FOLDER... [--untrusted] [--all]

Only files that Pillow recognises in a format of the policy count; `--all` lists the others too.
Prints a line for each file that one of the two refuses, whose sizes differ, or that raises an
untyped error; then the counts. Exits with 1 if Pillow decodes a file that the library refuses, or
an error is untyped. With pillow-heif, Pillow decodes HEIC and HEIF too. The memory is limited to
4 GiB, since Pillow would use all of it for a decompression bomb.
"""

from __future__ import annotations

import argparse
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aioembed.errors import AioembedError
from aioembed.images import IMAGE_FORMATS, SourcePolicy, decode

_OURS = {"MPO": "JPEG"}
_MEMORY = 4 * 1024**3


def files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def by_pillow(path: Path) -> tuple[str, tuple[int, int] | str]:
    """Return the format that Pillow sees, and the upright size or what it raised."""
    name = ""
    try:
        with Image.open(path) as image:
            name = image.format or ""
            image.load()
            try:
                return name, ImageOps.exif_transpose(image).size
            except Exception:  # noqa: BLE001 (damaged EXIF)
                return name, image.size
    except Exception as exc:  # noqa: BLE001
        return name, f"{type(exc).__name__}: {exc}"


def by_us(path: Path, policy: SourcePolicy) -> tuple[int, int] | AioembedError | Exception:
    try:
        pixels: np.ndarray = decode(path.read_bytes(), policy)
    except Exception as exc:  # noqa: BLE001
        return exc
    return pixels.shape[1], pixels.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--untrusted", action="store_true")
    parser.add_argument("--all", action="store_true", help="formats that are not allowed, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    policy = SourcePolicy.untrusted() if options.untrusted else SourcePolicy.trusted()
    counts = Counter[str]()
    for path in files(options.folders):
        name, theirs = by_pillow(path)
        is_ours = _OURS.get(name, name) in policy.formats & IMAGE_FORMATS
        if not name or not (is_ours or options.all):
            counts["not recognised, or of another format"] += 1
            continue
        ours = by_us(path, policy)
        outcome = "same"
        if isinstance(ours, Exception):
            if not isinstance(ours, AioembedError):
                outcome = "UNTYPED"
            elif isinstance(theirs, str):
                outcome = "refused by both"
            else:
                outcome = "REFUSED by this library only" if is_ours else "format not allowed"
        elif isinstance(theirs, str):
            outcome = "refused by Pillow only"
        elif ours != theirs:
            outcome = "another size"
        counts[outcome] += 1
        if outcome not in ("same", "refused by both"):
            print(f"{outcome}: {path} ({name}): {theirs} / {ours}")
    for outcome, count in counts.most_common():
        print(f"{count:7} {outcome}")
    sys.exit(1 if counts["UNTYPED"] or counts["REFUSED by this library only"] else 0)


if __name__ == "__main__":
    main()
