"""Mutated images and URIs, in a child with a memory limit: only typed errors are allowed.

    python benchmarks/fuzz_images.py [--images 20000] [--uris 20000] [--seed 0]

Prints the outcomes, the longest single case, and the child's peak memory; exits with 1 on
an error outside the library's tree, a case of more than 5 seconds, or a dead child.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

import anyio
import numpy as np
from PIL import Image

from aioembed.errors import AioembedError
from aioembed.images import IMAGE_FORMATS, SourcePolicy, fetch, load_image, prepare
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING

MEMORY_LIMIT = 2 * 1024**3
SLOWEST = 5.0
POLICY = SourcePolicy.untrusted().allow(
    max_pixels=4_000_000, max_dimension=8192, formats=IMAGE_FORMATS
)
TRUNCATED = POLICY.allow(truncated="allow")
URIS = (
    "http://example.org/cat.png",
    "https://user:pw@example.org:443/a/b?c=d#e",
    "http://127.0.0.1/",
    "http://[::1]:80/x",
    "http://0x7f000001/",
    "file:///etc/passwd",
    "data:image/png;base64,iVBORw0KGgo=",
    "data:image/gif,GIF89a%00",
    "../../etc/passwd",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ",
)
PIECES = ("\\", "@", "%2e", "%00", "//", ":", "[", "]", "..", "\r\n", "\u3002", "é", "127.1", "\0")


def seeds() -> dict[str, list[bytes]]:
    y, x = np.mgrid[0:40, 0:52]
    rgb = Image.fromarray(np.stack((x * 4, y * 6, (x * y) % 256), -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
    variants: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "JPEG": [
            (rgb, {"exif": exif.tobytes()}),
            (rgb, {"progressive": True}),
            (rgb.convert("CMYK"), {}),
        ],
        "PNG": [(rgb, {"exif": exif.tobytes()}), (rgb.quantize(16), {}), (rgb.convert("LA"), {})],
        "WEBP": [(rgb, {"lossless": True, "exif": exif.tobytes()}), (rgb, {}), (rgb, frames)],
        "GIF": [(rgb, {"comment": b"hello"}), (rgb, frames)],
        "BMP": [(rgb, {}), (rgb.convert("1"), {})],
        "TIFF": [(rgb, {}), (rgb, {"compression": "tiff_lzw"}), (rgb, {"compression": "jpeg"})],
        "AVIF": [(rgb, {"exif": exif.tobytes()}), (rgb.convert("RGBA"), {})],
        "JPEG2000": [(rgb, {}), (rgb, {"no_jp2": True})],
        "ICO": [(rgb, {}), (rgb, {"bitmap_format": "bmp"})],
        "PPM": [(rgb, {}), (rgb.convert("1"), {}), (rgb.convert("F"), {})],
        "TGA": [(rgb, {}), (rgb, {"compression": "tga_rle"})],
        "PCX": [(rgb, {}), (rgb.quantize(16), {})],
        "QOI": [(rgb, {}), (rgb.convert("RGBA"), {})],
        "DIB": [(rgb, {})],
    }
    made: dict[str, list[bytes]] = {}
    for name, images in variants.items():
        for image, options in images:
            buffer = io.BytesIO()
            image.save(buffer, name, **options)
            made.setdefault(name, []).append(buffer.getvalue())
    with suppress(ImportError):
        import pillow_heif

        for heif_options in ({}, {"exif": exif.tobytes()}):
            buffer = io.BytesIO()
            pillow_heif.from_pillow(rgb).save(buffer, **heif_options)
            made.setdefault("HEIF", []).append(buffer.getvalue())
    return made


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed)) if changed else 0
        near_start = min(at, chance.randrange(64))
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and changed:
            changed[near_start] = chance.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + chance.randrange(1, 32)]
        elif kind == 4:
            changed[at:at] = chance.randbytes(chance.randrange(1, 32))
        else:
            value = chance.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 100_000))
            order = chance.choice(("big", "little"))
            changed[at : at + 4] = value.to_bytes(4, order)  # type: ignore[arg-type]
    return bytes(changed)


def mutated_uri(chance: random.Random) -> str:
    text = chance.choice(URIS)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(text) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + chr(chance.choice((chance.randrange(128), chance.randrange(0xD800))))
            text += chance.choice(URIS)[at:]
        elif kind == 2:
            text = text[:at] + text[at + chance.randrange(1, 8) :]
        else:
            text += chance.choice(URIS)[at:]
    return text


async def resolver(_host: str, _port: int) -> list[str]:
    return ["10.0.0.1"]


async def fuzz(images: int, uris: int, seed: int) -> int:
    chance, outcomes, bad, slowest = random.Random(seed), Counter[str](), 0, 0.0
    corpus = seeds()
    names = sorted(corpus)

    def cases() -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
        for index in range(images):
            name = names[index % len(names)]
            data = mutated(chance.choice(corpus[name]), chance)
            wanted = (RNE_PREPROCESSING, CLIP_PREPROCESSING)[index // len(names) % 2]
            policy = TRUNCATED if chance.randrange(4) == 0 else POLICY
            yield name, partial(prepare, data, wanted, policy=policy)
        for index in range(uris):
            text = mutated_uri(chance)
            if index % 10 == 0:
                payload = base64.b64encode(mutated(corpus["PNG"][0], chance)).decode()
                text = chance.choice(("", "data:image/png;base64,")) + payload
            if text.lower().startswith(("http:", "https:")):
                yield "URI", partial(fetch, text, POLICY, resolver=resolver)
            else:
                yield "URI", partial(load_image, text, policy=POLICY)

    for name, case in cases():
        begin = time.perf_counter()
        try:
            await case()
            outcome = "decoded"
        except AioembedError as exc:
            outcome = type(exc).__name__
        except Exception as exc:  # noqa: BLE001 (what must not come is counted)
            outcome, bad = f"UNTYPED {type(exc).__name__}: {exc}", bad + 1
        slowest = max(slowest, time.perf_counter() - begin)
        outcomes[f"{name:8} {outcome}"] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7} {outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{sum(outcomes.values())} cases, {bad} untyped, slowest {slowest:.2f} s, "
        f"peak memory {peak:.0f} MB"
    )
    return 1 if bad or slowest > SLOWEST else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--uris", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        command = [sys.executable, __file__, *sys.argv[1:], "--child"]
        ended = subprocess.run(command, check=False, timeout=3600)
        sys.exit(
            f"the child died with {ended.returncode}" if ended.returncode < 0 else ended.returncode
        )
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    warnings.simplefilter("ignore")
    sys.exit(anyio.run(fuzz, options.images, options.uris, options.seed))


if __name__ == "__main__":
    main()
