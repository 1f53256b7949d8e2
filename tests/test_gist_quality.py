"""What the shipped GIST program finds, through the native runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from aioembed.images import preprocess
from aioembed.models import METADATA_METHOD, Preprocessing, ProgramMetadata
from aioembed.runtime import Program
from aioembed.testing.scenes import draw_scenes, near_duplicates

Vector: TypeAlias = npt.NDArray[np.float32]
Embed: TypeAlias = Callable[[Image.Image], Vector]


class Figures(NamedTuple):
    """How well near-duplicates stand out among unrelated pictures."""

    recall_at_1: float
    lowest_duplicate: float
    highest_unrelated: float


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with as_file(files("aioembed.models") / "gist_512.pte") as path:
        loaded = Program.load(path)
        yield loaded
        loaded.close()


@pytest.fixture(scope="module")
def metadata(program: Program) -> ProgramMetadata:
    return ProgramMetadata.model_validate_json(str(program.constants[METADATA_METHOD]))


@pytest.fixture(scope="module")
def preprocessing(metadata: ProgramMetadata) -> Preprocessing:
    assert metadata.preprocessing is not None
    return metadata.preprocessing


@pytest.fixture(scope="module")
def embed(program: Program, preprocessing: Preprocessing) -> Embed:
    def run(image: Image.Image) -> Vector:
        (vectors,) = program.run(preprocess(np.asarray(image), preprocessing))
        assert vectors.shape == (1, 512)
        return np.asarray(vectors[0], np.float32)

    return run


def measure(originals: Mapping[str, Image.Image], embed: Embed) -> Figures:
    """Look every near-duplicate up among the originals, and compare all that are unrelated."""
    names = list(originals)
    families = [
        np.stack([embed(image), *map(embed, near_duplicates(image).values())])
        for image in originals.values()
    ]
    gallery = np.stack([family[0] for family in families])
    hits = [
        np.argmax(gallery @ duplicate) == index
        for index, family in enumerate(families)
        for duplicate in family[1:]
    ]
    duplicates = {name: float((f @ f[0]).min()) for name, f in zip(names, families, strict=True)}
    unrelated = {
        (names[a], names[b]): float((families[a] @ families[b].T).max())
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    figures = Figures(float(np.mean(hits)), min(duplicates.values()), max(unrelated.values()))
    print(f"{len(hits)} near-duplicates of {len(names)} pictures: {figures}")
    print("lowest duplicate of each:", {name: round(low, 3) for name, low in duplicates.items()})
    print("highest unrelated pair:", max(unrelated, key=lambda pair: unrelated[pair]))
    return figures


def test_photographs_are_told_from_their_near_duplicates(photographs: Path, embed: Embed) -> None:
    paths = [path for path in sorted(photographs.glob("*.*")) if path.suffix in {".png", ".jpg"}]
    paths += [photographs / "exif" / name for name in ("landscape_1.jpg", "portrait_1.jpg")]
    originals = {path.stem: _open(path) for path in paths}
    assert len(originals) == 10

    figures = measure(originals, embed)

    assert figures.recall_at_1 == 1
    assert figures.lowest_duplicate > figures.highest_unrelated + 0.4


def test_drawn_scenes_are_told_from_their_near_duplicates(embed: Embed) -> None:
    figures = measure(draw_scenes(), embed)

    assert figures.recall_at_1 == 1
    assert figures.lowest_duplicate > figures.highest_unrelated + 0.4


def test_vectors_have_length_1(embed: Embed) -> None:
    for image in draw_scenes().values():
        assert np.linalg.norm(embed(image).astype(np.float64)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("colour", ["black", "white", "red", "#808080", "#010101", "#3c7f12"])
def test_a_picture_of_one_colour_has_the_uniform_vector(embed: Embed, colour: str) -> None:
    vector = embed(Image.new("RGB", (64, 48), colour))

    np.testing.assert_allclose(vector, 512**-0.5, atol=1e-5)
    for image in draw_scenes().values():
        assert abs(float(vector @ embed(image))) < 0.02


def test_a_batch_gives_what_its_pictures_give_one_by_one(
    program: Program, preprocessing: Preprocessing, embed: Embed
) -> None:
    images = list(draw_scenes().values())
    pixels = np.concatenate([preprocess(np.asarray(i), preprocessing) for i in images])

    for size in (len(images), 1, 2):
        (vectors,) = program.run(pixels[:size])

        expected = np.stack([embed(image) for image in images[:size]])
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_the_program_says_what_it_takes_and_gives(
    program: Program, metadata: ProgramMetadata, preprocessing: Preprocessing
) -> None:
    (pixels,) = program.methods["forward"].inputs
    (vectors,) = program.methods["forward"].outputs

    assert pixels.accepts(preprocessing.input_shape)
    assert pixels.dtype == vectors.dtype == "float32"
    assert vectors.accepts((1, metadata.embedding_dim))
    assert (metadata.name, metadata.modality) == ("gist-512", "image")
    assert metadata.normalized


def test_the_program_is_small(program: Program) -> None:
    assert program.path.stat().st_size < 100_000


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
