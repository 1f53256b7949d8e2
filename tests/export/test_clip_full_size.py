"""ViT-B/32 at full size, from photographs to vectors, against transformers end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aioembed.images import SourcePolicy, decode, preprocess
from aioembed.runtime import Program
from aioembed.spec import METADATA_METHOD, ProgramMetadata

pytestmark = pytest.mark.full_size

_LOWEST = {"fp32": 0.99999, "int8": 0.999}


@pytest.fixture(scope="module", params=["plain", "heavy-tailed"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32 with seeded random weights."""
    pytest.importorskip("transformers")
    from .clip_checkpoints import make_heavy_tailed, rewrite, save_clip

    folder = save_clip(tmp_path_factory.mktemp("clip"))
    return rewrite(folder, make_heavy_tailed) if request.param == "heavy-tailed" else folder


def export(checkpoint: Path, out: Path, **options: Any) -> Any:
    from aioembed.export.clip import ClipOptions, export_clip

    report = export_clip(checkpoint, out, ClipOptions(**options))
    print(f"\n{options}\n{report}")
    return report


@pytest.mark.parametrize("norm", ["ln", "bn"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_photographs_get_the_vectors_of_transformers(
    checkpoint: Path, photographs: Path, tmp_path: Path, precision: Any, norm: Any
) -> None:
    """The reference goes from the file through transformers' processor and model."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel

    out = tmp_path / "image.pte"
    export(checkpoint, out, tower="image", precision=precision, norm=norm, calibrate=photographs)
    files = sorted(file for file in photographs.iterdir() if file.suffix in {".png", ".jpg"})
    model = CLIPModel.from_pretrained(checkpoint).eval()
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        pixels = CLIPImageProcessorPil()(images=pictures, return_tensors="pt")["pixel_values"]
        wanted = model.get_image_features(pixels).pooler_output
        wanted = torch.nn.functional.normalize(wanted, dim=-1).numpy()
    program = Program.load(out)
    metadata = ProgramMetadata.model_validate_json(str(program.constants[METADATA_METHOD]))
    assert metadata.preprocessing is not None
    for file, row in zip(files, wanted, strict=True):
        picture = decode(file.read_bytes(), SourcePolicy.trusted())
        (vector,) = program.run(preprocess(picture, metadata.preprocessing))[0]
        cosine = float(vector @ row)
        print(f"{file.name}: {cosine:.7f}")
        assert cosine >= _LOWEST[precision]
    program.close()


@pytest.mark.parametrize("norm", ["ln", "bn"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_texts_get_the_vectors_of_transformers(
    checkpoint: Path, tmp_path: Path, precision: Any, norm: Any
) -> None:
    out = tmp_path / "text.pte"
    report = export(checkpoint, out, tower="text", precision=precision, norm=norm)
    assert report.cosine >= _LOWEST[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_programs_take_the_space_they_promise(
    tmp_path: Path, checkpoint: Path, precision: Any
) -> None:
    """fp32 is four bytes a weight and little more, int8 about a quarter."""
    report = export(checkpoint, tmp_path / "image.pte", tower="image", precision=precision)
    assert report.size_bytes < (355e6 if precision == "fp32" else 90e6)
    assert np.isfinite(report.latency_ms)
