"""One scene in eight EXIF orientations is one embedding.

The photographs of a scene are not eight turns of one picture: each has its own number, the
orientation's, drawn in its centre. With that square covered they are, up to JPEG's re-encoding,
and their vectors have to agree to 0.9999. As they are, the numbers make a difference:
0.99988 with CLIP's architecture was seen, and 0.9995 is asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import ImageEmbeddings, SourcePolicy, cosine_similarity, load_image

from ..programs import TINY_IMAGE

pytestmark = pytest.mark.anyio

_TINY_CLIP = Path(__file__).resolve().parents[1] / "programs" / "tiny_clip_image.pte"
_NUMBER_SHARE = 0.2


async def without_number(path: Path) -> NDArray[np.uint8]:
    """Cover the number that each photograph of the set has written in its centre."""
    pixels = (await load_image(path, policy=SourcePolicy.trusted())).copy()
    height, width, _ = pixels.shape
    reach = int(min(height, width) * _NUMBER_SHARE)
    middle_row, middle_column = height // 2, width // 2
    pixels[
        middle_row - reach : middle_row + reach, middle_column - reach : middle_column + reach
    ] = 128
    return pixels


@pytest.mark.parametrize("scene", ["landscape", "portrait"])
@pytest.mark.parametrize("model_source", [TINY_IMAGE, _TINY_CLIP], ids=["tiny", "clip"])
async def test_every_orientation_gives_the_vector_of_the_first(
    photographs: Path, scene: str, model_source: Path
) -> None:
    paths = [photographs / "exif" / f"{scene}_{number}.jpg" for number in range(1, 9)]
    async with ImageEmbeddings(model_source) as model:
        covered = [await model.forward(await without_number(path)) for path in paths]
        as_they_are = [await model.forward(path) for path in paths]
    assert np.min(cosine_similarity(np.stack(covered), covered[0])) >= 0.9999
    assert np.min(cosine_similarity(np.stack(as_they_are), as_they_are[0])) >= 0.9995
