"""Exported programs of every family, judged as files by the library's own runtime."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aioembed import ImageEmbeddings, TextEmbeddings, classify
from aioembed.errors import MissingExtra
from aioembed.images import preprocess
from aioembed.models import METADATA_METHOD, ProgramMetadata
from aioembed.runtime import Program
from aioembed.testing.photographs import photographs

from .conftest import Checkpoints, Exports

pytestmark = pytest.mark.export

IMAGES = [
    ("clip", "int8"),
    ("siglip", "int8"),
    ("dinov2-registers", "fp32"),
    ("dinov2-swiglu", "int8"),
]
LOWEST = {"fp32": 0.99999, "int8": 0.999}
"""The lowest cosine to transformers that is accepted."""


def metadata(program: Program) -> ProgramMetadata:
    return ProgramMetadata.model_validate_json(str(program.constants[METADATA_METHOD]))


def alike(vector: Any, wanted: Any) -> float:
    """Return the cosine of two vectors."""
    return float(vector @ wanted / np.linalg.norm(vector) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("name", "precision"), IMAGES)
def test_from_picture_to_vector_as_transformers(
    tiny: Checkpoints, exported: Exports, name: str, precision: str
) -> None:
    """The reference is transformers' processor on the picture, and its model."""
    import torch
    import transformers

    folder = tiny(name)
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, f"{kind}Pil").from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    program, report = exported(name, "image", precision)
    ours = metadata(program).preprocessing
    assert ours is not None
    for picture in photographs().values():
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embed = model if name.startswith("dinov2") else model.get_image_features
            wanted = embed(pixels).pooler_output[0].numpy()
        (vector,) = program.run(preprocess(np.asarray(picture), ours))[0]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert alike(vector, wanted) >= LOWEST[precision]
    assert report.cosine >= LOWEST[precision]
    assert report.size_bytes == report.path.stat().st_size


@pytest.mark.parametrize(("name", "precision"), IMAGES)
def test_an_image_takes_two_delegate_calls_at_most(
    exported: Exports, name: str, precision: str
) -> None:
    """What is outside cuts the one row of each image that the last block goes on with."""
    report = exported(name, "image", precision).report
    assert report.delegate_calls <= 2
    assert set(report.ops_outside) <= {"aten.slice_copy.Tensor"}


@pytest.mark.parametrize(("name", "precision"), IMAGES)
def test_batches_of_every_size_give_what_single_images_give(
    exported: Exports, name: str, precision: str
) -> None:
    image = exported(name, "image", precision).program
    patches = np.random.default_rng(0).random((4, 16, 192), np.float32)
    alone = np.concatenate([image.run(one)[0] for one in patches[:, np.newaxis]])
    for count in (1, 2, 4, 3):
        together = image.run(patches[:count])[0]
        assert np.allclose(together, alone[:count], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_texts_of_every_length_give_what_transformers_gives(
    tiny_clip: Path, exported: Exports, precision: str
) -> None:
    import torch
    from transformers import CLIPModel

    text = exported("clip", "text", precision).program
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    random = np.random.default_rng(0)
    for length in (2, 77, 3, 16, 40):
        ids = np.array([[598, *random.integers(1, 598, length - 2), 599]])
        with torch.no_grad():
            wanted = model.get_text_features(torch.from_numpy(ids)).pooler_output[0].numpy()
        (vector,) = text.run(ids)[0]
        assert alike(vector, wanted) >= LOWEST[precision]


def test_the_metadata_say_what_the_programs_take(exported: Exports) -> None:
    image = exported("clip", "image", "int8").program
    text = exported("clip", "text", "fp32").program
    pixels = metadata(image).preprocessing
    assert pixels is not None
    assert (pixels.layout, pixels.patch_size, pixels.resize) == ("patches", 8, "crop")
    assert image.methods["forward"].inputs[0].accepts(pixels.input_shape)
    assert image.methods["forward"].inputs[0].shape[0] == 4
    assert metadata(text).context_length == 77
    assert text.methods["forward"].inputs[0].shape == (1, 77)
    assert (metadata(image).precision, metadata(text).precision) == ("int8", "fp32")
    assert metadata(image).logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert metadata(text).tokenization is None
    assert metadata(image).space.is_compatible(metadata(text).space)


@pytest.mark.anyio
async def test_siglips_texts_and_probabilities_are_those_of_transformers(
    tiny: Checkpoints, exported: Exports
) -> None:
    """From the text to the vector: lower case, the end of text, padding, and no mask."""
    import torch
    from transformers import PreTrainedTokenizerFast, SiglipModel

    folder = tiny("siglip")
    model = SiglipModel.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = ["", "a cat", "A Cat", "many more words than twelve tokens can hold of any text"]
    ids = tokenizer(
        [text.lower() for text in texts],
        padding="max_length",
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )["input_ids"]
    with torch.no_grad():
        wanted = model.get_text_features(ids).pooler_output.numpy()
    picture = next(iter(photographs().values()))
    images = ImageEmbeddings(exported("siglip", "image", "int8").program.path)
    embedder = TextEmbeddings(
        exported("siglip", "text", "fp32").program.path,
        tokenizer=folder / "tokenizer.json",
        truncate="silent",
    )

    async with images, embedder:
        vectors = [await embedder.forward(text) for text in texts]
        result = await classify(
            picture, ["cat", "dog"], prompts=["{}"], image_model=images, text_model=embedder
        )

    for ours, theirs in zip(vectors, wanted, strict=True):
        assert alike(ours, theirs) >= LOWEST["fp32"]
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert alike(vectors[0], vectors[1]) < 0.9999
    for score in result.scores:
        logit = model.logit_scale.exp().item() * score.similarity + model.logit_bias.item()
        assert score.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_the_command_finds_the_family_and_says_what_came_out(
    tiny: Checkpoints, tmp_path: Path
) -> None:
    """In its own process, so that what torch writes to stderr would be seen."""
    folder = Path(shutil.copytree(tiny("dinov2"), tmp_path / "dinov2"))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    for index in range(2):
        Image.new("RGB", (40, 30), (90 * index, 120, 30)).save(tmp_path / f"{index}.png")
    out = tmp_path / "image.pte"
    arguments = ["export", "--weights", str(folder), "--out", str(out), "--norm", "bn"]
    more = ["--image-size", "48", "--preprocess", "rne", "--calibrate", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "aioembed", *arguments, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("aioembed: ") for line in done.stderr.splitlines()), done.stderr
    assert "DINOv2, image tower, 48 pixels in patches of 8" in done.stdout
    assert "cc-by-nc-4.0: not for commercial use" in done.stdout
    assert "cosine >= 0.99999" in done.stdout or "cosine >= 1.0" in done.stdout
    program = Program.load(out)
    pixels = metadata(program).preprocessing
    program.close()
    assert pixels is not None
    assert (pixels.height, pixels.resize, pixels.antialias) == (48, "stretch", False)


def test_the_command_needs_a_checkpoint() -> None:
    from typer.testing import CliRunner

    from aioembed.cli.app import app

    result = CliRunner().invoke(app, ["export", "--out", "image.pte"])
    assert result.exit_code == 2
    assert "--weights" in result.output


def test_the_weights_are_gone_from_memory_before_the_program_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is the one here with the GELU by erf, and without a tokenizer."""
    import torch

    from aioembed.export import ExportOptions, ExportReport, export_model
    from aioembed.export.lowering import Lowered

    from .checkpoints import save_tiny

    kinds = (torch.nn.Linear, Lowered)
    left: list[object] = []
    judge = ExportReport.of

    def watch(*args: Any, **kwargs: Any) -> ExportReport:
        left.extend(kept for kept in gc.get_objects() if issubclass(type(kept), kinds))
        return judge(*args, **kwargs)

    monkeypatch.setattr(ExportReport, "of", watch)
    others = {id(other) for other in gc.get_objects() if issubclass(type(other), kinds)}
    folder = save_tiny(tmp_path / "clip", "clip-gelu")
    report = export_model(folder, tmp_path / "a.pte", ExportOptions(tower="text", norm="bn"))
    assert [kept for kept in left if id(kept) not in others] == []
    assert report.cosine >= LOWEST["fp32"]
    assert report.delegate_calls == 3
    assert "needs the model's tokenizer.json" in dict(report.notes)["tokenizer"]


def test_without_torch_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from aioembed.export import ExportOptions, export_model

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"aioembed\[export\]"):
        export_model("any", tmp_path / "image.pte", ExportOptions())
