"""Inputs to watch, choose and judge a program on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aioembed.errors import AioembedError, InvalidConfig, shorten
from aioembed.export.families import TextShape
from aioembed.images import SourcePolicy, decode, preprocess
from aioembed.models import Preprocessing, Tokenization
from aioembed.testing.photographs import near_duplicates, photographs

__all__ = ["image_samples", "text_samples"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_MOST = 32
_LENGTHS = (2, 3, 5, 8, 12, 16, 24, 40, 77)
_SHORT = (4, 6, 8, 10, 12, 16, 20, 28)
_OF_EACH_SHORT = 4
_REPETITIVE = ((12, (1,) * 16 + (2,) * 8 + (4,) * 4), (77, (1, 2, 4)))
"""Lengths, and of how many different words each of their texts is."""

Samples = Sequence[tuple[Tensor, ...]]


def image_samples(preprocessing: Preprocessing, folder: Path | None) -> Samples:
    """Return images as a program's inputs, of shape `preprocessing.input_shape`.

    Args:
        preprocessing: The program's.
        folder: Of images, of which at most 32 are taken, spread over the names in their order;
            the photographs that ship where None.

    Raises:
        InvalidConfig: The folder has no images, or one that cannot be read.
    """
    pictures = _shipped() if folder is None else [_opened(file) for file in _spread(folder)]
    return [(torch.from_numpy(preprocess(picture, preprocessing)),) for picture in pictures]


def text_samples(shape: TextShape, tokenization: Tokenization | None = None) -> Samples:
    """Return texts of several lengths as a program's inputs, the same each time.

    Some are of random words, most of these short: int8 loses several times as much on a few short
    texts as on the others. In others one word, or a few in turn, fill the text: all of its
    positions are alike then, and what int8 rounds away adds up where it averages out otherwise.
    Which words show it differs, so there are many of these.
    """
    generator = torch.Generator().manual_seed(0)
    end = shape.vocabulary - 1 if shape.end_of_text is None else shape.end_of_text
    start = end - 1

    def sample(length: int, different: int) -> tuple[Tensor, ...]:
        words = torch.randint(0, start, (different,), generator=generator).repeat(length)
        ids = [start, *words[: length - 2].tolist(), end]
        if tokenization is not None:
            ids += [tokenization.pad_id] * (shape.context_length - length)
        return (torch.tensor([ids], dtype=torch.int64),)

    longest = shape.context_length
    texts = [sample(length, length) for length in sorted({min(n, longest) for n in _LENGTHS})]
    texts += [sample(n, n) for n in _SHORT for _ in range(_OF_EACH_SHORT) if n <= longest]
    for length, differing in _REPETITIVE:
        texts += [sample(min(length, longest), different) for different in differing]
    return texts


def _shipped() -> list[np.ndarray]:
    """Return the photographs that ship, and each of them in the dark."""
    pictures = list(photographs().values())
    changed = [near_duplicates(picture)["darker"] for picture in pictures]
    return [np.asarray(picture) for picture in (*pictures, *changed)]


def _spread(folder: Path) -> list[Path]:
    """Return at most `_MOST` images of a folder."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    except OSError as exc:
        raise InvalidConfig(f"{shorten(folder)} cannot be read as a folder: {exc}") from exc
    if not files:
        raise InvalidConfig(f"{shorten(folder)} has no images ({', '.join(sorted(_SUFFIXES))})")
    step = max(1, -(-len(files) // _MOST))
    return files[::step]


def _opened(file: Path) -> np.ndarray:
    """Decode a file."""
    try:
        return decode(file.read_bytes(), SourcePolicy.trusted())
    except (OSError, AioembedError) as exc:
        raise InvalidConfig(f"{shorten(file)} cannot be used to calibrate: {exc}") from exc
