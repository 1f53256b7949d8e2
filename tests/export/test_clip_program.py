"""Exported CLIP programs, judged as files by the library's own runtime."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aioembed.errors import MissingExtra
from aioembed.images import preprocess
from aioembed.models import METADATA_METHOD, ProgramMetadata
from aioembed.runtime import Program
from aioembed.testing.scenes import draw_scenes

pytestmark = pytest.mark.export


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precision(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def image(
    tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, precision: Any
) -> Iterator[Program]:
    yield from exported(tiny_clip, tmp_path_factory, "image", precision)


@pytest.fixture(scope="module")
def text(
    tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, precision: Any
) -> Iterator[Program]:
    yield from exported(tiny_clip, tmp_path_factory, "text", precision)


def exported(
    checkpoint: Path, folders: pytest.TempPathFactory, tower: Any, precision: Any
) -> Iterator[Program]:
    from aioembed.export.clip import ClipOptions, export_clip

    out = folders.mktemp("programs") / f"{tower}.pte"
    report = export_clip(checkpoint, out, ClipOptions(tower=tower, precision=precision))
    print(report)
    assert report.cosine >= lowest(precision)
    assert report.size_bytes == out.stat().st_size
    program = Program.load(out)
    yield program
    program.close()


def lowest(precision: str) -> float:
    """The lowest cosine to transformers that is accepted."""
    return 0.99999 if precision == "fp32" else 0.999


def metadata(program: Program) -> ProgramMetadata:
    return ProgramMetadata.model_validate_json(str(program.constants[METADATA_METHOD]))


def test_from_picture_to_vector_as_transformers(
    tiny_clip: Path, image: Program, precision: str
) -> None:
    """The reference is transformers' processor on the picture, and its model."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    ours = metadata(image).preprocessing
    assert ours is not None
    for picture in draw_scenes().values():
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            wanted = model.get_image_features(pixels).pooler_output[0].numpy()
        (vector,) = image.run(preprocess(np.asarray(picture), ours))[0]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector @ wanted / np.linalg.norm(wanted) >= lowest(precision)


def test_batches_of_every_size_give_what_single_images_give(image: Program, precision: str) -> None:
    patches = np.random.default_rng(0).random((4, 16, 192), np.float32)
    alone = np.concatenate([image.run(one)[0] for one in patches[:, np.newaxis]])
    for count in (1, 2, 4, 3):
        together = image.run(patches[:count])[0]
        assert np.allclose(together, alone[:count], atol=1e-5)


def test_texts_of_every_length_give_what_transformers_gives(
    tiny_clip: Path, text: Program, precision: str
) -> None:
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    random = np.random.default_rng(0)
    for length in (2, 77, 3, 16, 40):
        ids = np.array([[598, *random.integers(1, 598, length - 2), 599]])
        with torch.no_grad():
            wanted = model.get_text_features(torch.from_numpy(ids)).pooler_output[0].numpy()
        (vector,) = text.run(ids)[0]
        assert vector @ wanted / np.linalg.norm(wanted) >= lowest(precision)


def test_the_metadata_say_what_the_program_takes(
    image: Program, text: Program, precision: str
) -> None:
    pixels = metadata(image).preprocessing
    assert pixels is not None
    assert (pixels.layout, pixels.patch_size, pixels.resize) == ("patches", 8, "crop")
    assert image.methods["forward"].inputs[0].accepts(pixels.input_shape)
    assert image.methods["forward"].inputs[0].shape[0] == 4
    assert metadata(text).context_length == 77
    assert text.methods["forward"].inputs[0].shape == (1, 77)
    assert {metadata(image).precision, metadata(text).precision} == {precision}
    assert metadata(image).logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_both_towers_share_one_space(image: Program, text: Program) -> None:
    assert metadata(image).space == metadata(text).space


def test_the_hook_stand_ins_have_its_contract_and_the_same_vectors(
    tiny_clip: Path, image: Program, text: Program, precision: Any, tmp_path: Path
) -> None:
    from aioembed.export.clip.hook import hook_image_program, hook_text_program

    hook_image_program(tiny_clip).write(tmp_path / "image.pte")
    hook_text_program(tiny_clip).write(tmp_path / "text.pte")
    pixels = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    patches = pixels.reshape(3, 4, 8, 4, 8).transpose(1, 3, 2, 4, 0).reshape(1, 16, 192)
    hook = Program.load(tmp_path / "image.pte")
    assert METADATA_METHOD not in hook.constants
    (ours,), (theirs,) = image.run(np.ascontiguousarray(patches))[0], hook.run(pixels)[0]
    assert ours @ theirs >= lowest(precision)

    hook = Program.load(tmp_path / "text.pte")
    ids = np.array([[598, 5, 7, 9, 599]])
    padded = np.array([[598, 5, 7, 9, 599, 0, 0]])
    (ours,) = text.run(ids)[0]
    for given in (ids, padded):
        (theirs,) = hook.run(given, (given != 0).astype(np.int64))[0]
        assert ours @ theirs >= lowest(precision)


def test_the_command_writes_a_program_and_its_report(tiny_clip: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from aioembed.cli.app import app

    for index in range(2):
        Image.new("RGB", (40, 30), (90 * index, 120, 30)).save(tmp_path / f"{index}.png")
    out = tmp_path / "image.pte"
    arguments = f"export clip-vit-base-patch32 --tower image --weights {tiny_clip} --out {out}"
    result = CliRunner().invoke(
        app, [*arguments.split(), "--preprocess", "rne", "--calibrate", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "cosine >= 0.99999" in result.stdout or "cosine >= 1.0" in result.stdout
    program = Program.load(out)
    pixels = metadata(program).preprocessing
    assert pixels is not None
    assert (pixels.resize, pixels.antialias) == ("stretch", False)


def test_the_weights_are_gone_from_memory_before_the_program_is_judged(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from aioembed.export.clip import ClipOptions, ClipReport, export_clip
    from aioembed.export.lowering import Lowered

    kinds = (torch.nn.Linear, Lowered)
    left: list[object] = []

    def judge(*_args: object, **_kwargs: object) -> None:
        left.extend(kept for kept in gc.get_objects() if issubclass(type(kept), kinds))

    monkeypatch.setattr(ClipReport, "of", judge)
    others = {id(other) for other in gc.get_objects() if issubclass(type(other), kinds)}
    export_clip(tiny_clip, tmp_path / "a.pte", ClipOptions(tower="image"))
    assert [kept for kept in left if id(kept) not in others] == []


def test_without_torch_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from aioembed.export.clip import ClipOptions, export_clip

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"aioembed\[export\]"):
        export_clip("any", tmp_path / "image.pte", ClipOptions(tower="image"))
