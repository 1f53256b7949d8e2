"""`aioembed verify`: whether a model works, and which preprocessing its program was made for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import anyio
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from rich.text import Text

from aioembed import ImageEmbeddings, TextEmbeddings
from aioembed._sidecar import PRESETS
from aioembed.errors import UnknownPreprocessing, WrongDimensions
from aioembed.handle import EmbeddingHandle
from aioembed.models import Preprocessing
from aioembed.testing.photographs import near_duplicates, photographs

from . import ExitCode
from .common import (
    DebugOption,
    PreprocessingOption,
    ThreadsOption,
    complete_models,
    guarded,
    render_table,
    usage_error,
    warn,
    write_result,
)
from .progress import ProgressLine

__all__ = ["judge_captions", "judge_duplicates", "verify"]

CAPTIONS = {
    "astronaut": "a photo of an astronaut in an orange suit",
    "cat": "a photo of a cat",
    "coffee": "a photo of a cup of coffee",
    "grass": "a photo of grass",
    "gravel": "a photo of gravel",
    "photographer": "a photo of a man with a camera on a tripod",
    "rocket": "a photo of a rocket on its launch pad at night",
    "stars": "a photo of galaxies in space",
}
"""What is to be seen on each of the photographs that ship."""

_CHANGES = ("jpeg", "cropped", "mirrored")
_LEAST_ACCURACY = 0.75
_CLEARLY_BETTER = 1.1
_LEAST_MEAN_COSINE, _LEAST_COSINE = 0.98, 0.93
_OWN = "the model's own"

Vectors = NDArray[np.float32]
_Judge = Callable[[ImageEmbeddings, str, str | None], Awaitable["_Candidate"]]


@dataclass(frozen=True, slots=True)
class Score:
    """How well vectors of pictures find what belongs to them.

    Attributes:
        found: How many do.
        total: Of how many.
        margin: Similarity to what belongs to a picture less that to the nearest other, the mean.
    """

    found: int
    total: int
    margin: float

    @property
    def passes(self) -> bool:
        """Whether three quarters of the pictures or more find what belongs to them."""
        return self.found >= _LEAST_ACCURACY * self.total

    def is_clearly_better(self, other: Score) -> bool:
        """Whether under another preprocessing fewer are found, or by a far thinner margin."""
        return self.found > other.found or self.margin > _CLEARLY_BETTER * max(other.margin, 0)


def judge_captions(pictures: Vectors, captions: Vectors) -> Score:
    """Judge vectors of pictures by those of their captions, both `(pictures, dim)`."""
    return _score(pictures @ captions.T)


def judge_duplicates(pictures: Vectors, duplicates: Vectors) -> Score:
    """Judge vectors `(pictures, dim)` by those of near-duplicates `(pictures, changes, dim)`."""
    scores = [_score(duplicates[:, change] @ pictures.T) for change in range(duplicates.shape[1])]
    return Score(
        found=sum(score.found for score in scores),
        total=sum(score.total for score in scores),
        margin=float(np.mean([score.margin for score in scores])),
    )


def _score(similarities: NDArray[np.float32]) -> Score:
    """Judge square similarities in which row and column of the same number belong together."""
    own = np.diag(similarities).copy()
    others = similarities.copy()
    np.fill_diagonal(others, -np.inf)
    return Score(
        found=int((own > others.max(axis=1)).sum()),
        total=len(own),
        margin=float((own - others.max(axis=1)).mean()),
    )


def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="As --model of `embed`.", autocompletion=complete_models
        ),
    ],
    *,
    text_model: Annotated[
        str | None,
        typer.Option(
            "--text-model",
            metavar="MODEL",
            help="Of the same checkpoint: judges by captions, the surest way.",
            autocompletion=complete_models,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MODEL",
            help="Another program of the same checkpoint, such as its int8 one.",
            autocompletion=complete_models,
            show_default=False,
        ),
    ] = None,
    preprocessing: PreprocessingOption = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Try a model on the photographs that ship.

    It is tried under each preprocessing that it may be made for. With a text model, counts the
    photographs whose nearest caption is their own; without, the near-duplicates that find their
    photograph, which says less. Exits with 0 only if three quarters are found and no other
    preprocessing does clearly better than the model's own.
    """
    with guarded(debug):
        album = photographs()
        pictures = list(album.values())
        captions = cosines = None
        if text_model is not None:
            texts = TextEmbeddings(text_model, threads=threads)
            captions = anyio.run(_once, texts, [CAPTIONS[name] for name in album])
        else:
            pictures += [near_duplicates(one)[of] for one in album.values() for of in _CHANGES]
        judge = partial(_judged, pictures=pictures, captions=captions)
        candidates = _tried(model, preprocessing, judge, threads)
        if compare is not None:
            cosines = _compared(compare, candidates[0], pictures[: len(album)], threads)
        best = max(candidates, key=lambda one: (one.score.found, one.score.margin))
        write_result(_result(candidates, best, cosines, captions is not None), None)
        problems = _problems(candidates[0], best, cosines)
        for problem in problems:
            warn(f"error: {problem}")
        if problems:
            raise typer.Exit(ExitCode.MODEL)
        warn(f"passed, with the preprocessing {candidates[0].name}")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A preprocessing, and how the model does under it.

    Attributes:
        name: Of the preset, or what stands for what the model says itself.
        choice: What the handle is given, None for that.
        pixels: What it comes to for this program.
        pictures: float32 `(photographs, dim)`.
        score: How well these find what belongs to them.
    """

    name: str
    choice: str | None
    pixels: Preprocessing
    pictures: Vectors
    score: Score


def _tried(
    model: str, preprocessing: str | None, judge: _Judge, threads: int | None
) -> list[_Candidate]:
    """Judge a model under what it says, or the caller, and under each preset.

    The first is the one in use: where nothing says it, the preset that fits best.
    """
    tried: list[_Candidate] = []
    attempts: list[tuple[str, str | None]] = [(preprocessing or _OWN, preprocessing)]
    attempts += [(name, name) for name in PRESETS]
    is_said = True
    for name, choice in attempts:
        handle = ImageEmbeddings(model, preprocessing=choice, threads=threads)
        try:
            found = anyio.run(judge, handle, name, choice)
        except UnknownPreprocessing:
            is_said = False
        except WrongDimensions:
            if choice == preprocessing:
                raise
        else:
            if found.pixels.pixels_id not in {one.pixels.pixels_id for one in tried}:
                tried.append(found)
    if not is_said:
        tried.sort(key=lambda one: (one.score.found, one.score.margin), reverse=True)
    return tried


async def _judged(
    model: ImageEmbeddings,
    name: str,
    choice: str | None,
    *,
    pictures: Sequence[Image.Image],
    captions: Vectors | None,
) -> _Candidate:
    """Judge a model under one preprocessing.

    Args:
        model: A handle with that preprocessing.
        name: Of the preprocessing.
        choice: What the handle was given.
        pictures: The photographs, and without captions their near-duplicates, one after the other.
        captions: Of the photographs, float32 `(photographs, dim)`.
    """
    async with model:
        vectors = await _embedded(model, pictures)
        pixels = model.preprocessing
    if captions is None:
        own, others = np.split(vectors, [len(CAPTIONS)])
        duplicates = others.reshape(len(own), len(_CHANGES), -1)
        return _Candidate(name, choice, pixels, own, judge_duplicates(own, duplicates))
    if vectors.shape[1] != captions.shape[1]:
        raise usage_error(
            f"pictures have {vectors.shape[1]} values and texts {captions.shape[1]}: the text "
            "model is of another checkpoint"
        )
    return _Candidate(name, choice, pixels, vectors, judge_captions(vectors, captions))


async def _embedded(model: EmbeddingHandle[Any], items: Sequence[Any]) -> Vectors:
    with ProgressLine(model, len(items)):
        await model.load()
        vectors: Vectors = await model.forward_batch(items)
    return vectors


async def _once(model: EmbeddingHandle[Any], items: Sequence[Any]) -> Vectors:
    async with model:
        return await _embedded(model, items)


def _compared(
    compare: str, used: _Candidate, pictures: Sequence[Image.Image], threads: int | None
) -> Vectors:
    """Return the cosine of each photograph's vector with that of another program."""
    try:
        other = anyio.run(_once, ImageEmbeddings(compare, threads=threads), pictures)
    except UnknownPreprocessing:
        same = used.choice or used.pixels
        handle = ImageEmbeddings(compare, preprocessing=same, threads=threads)
        other = anyio.run(_once, handle, pictures)
    if other.shape != used.pictures.shape:
        raise usage_error(
            f"the programs give {used.pictures.shape[1]} and {other.shape[1]} values: they are of "
            "different checkpoints"
        )
    cosines: Vectors = (other * used.pictures).sum(axis=1)
    return cosines


def _problems(used: _Candidate, best: _Candidate, cosines: Vectors | None) -> list[str]:
    """Return why a model does not pass."""
    problems = []
    if not used.score.passes:
        problems.append(
            f"with the preprocessing {used.name} only {used.score.found} of {used.score.total} "
            "are found: the model, or its preprocessing, is not what it should be"
        )
    if best.score.is_clearly_better(used.score):
        problems.append(
            f"the preprocessing {best.name} fits clearly better than {used.name}: use "
            f"--preprocessing {best.name}, or save it with `aioembed describe`"
        )
    if cosines is not None and not _agree(cosines):
        problems.append(
            f"the two programs differ: cosines of {_LEAST_MEAN_COSINE} on average and "
            f"{_LEAST_COSINE} at least are expected"
        )
    return problems


def _agree(cosines: Vectors) -> bool:
    return bool(cosines.mean() >= _LEAST_MEAN_COSINE and cosines.min() >= _LEAST_COSINE)


def _result(
    candidates: Sequence[_Candidate],
    best: _Candidate,
    cosines: Vectors | None,
    with_captions: bool,
) -> bytes:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("preprocessing", no_wrap=True)
    found = "nearest caption" if with_captions else "near-duplicates found"
    table.add_column(found, justify="right", no_wrap=True)
    table.add_column("margin", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in candidates:
        style, fits = ("bold green", "fits best") if one is best else ("", "")
        share = f"{one.score.found} of {one.score.total}"
        cells = (one.name, share, f"{one.score.margin:.3f}", fits)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    result = render_table(table)
    if cosines is not None:
        line = f"{cosines.mean():.4f} on average, {cosines.min():.4f} at least"
        result += f"\ncosine with the other program: {line}\n".encode()
    return result
