"""Programs from other exporters: preprocessing is never guessed, and what declares it is used."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aioembed import (
    CLIP_PREPROCESSING,
    IMAGENET_PREPROCESSING,
    RNE_PREPROCESSING,
    EmbeddingSpace,
    ImageEmbeddings,
    ModelSpec,
    Preprocessing,
    cosine_similarity,
)
from aioembed import _probe as probing
from aioembed._local_file import LocalFile
from aioembed.errors import (
    IntegrityError,
    InvalidConfig,
    InvalidProgram,
    ProbeIncomplete,
    UnknownPreprocessing,
    WrongDimensions,
)
from aioembed.images import preprocess
from aioembed.models import Modality

PROGRAMS = Path(__file__).parent / "programs"
PICTURE = np.asarray(Image.radial_gradient("L").rotate(30).resize((90, 60)).convert("RGB"))

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["plain_nchw", "plain_nhwc"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(PROGRAMS / f"{request.param}.pte", tmp_path / "mine.pte"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOEMBED_CACHE", str(tmp_path / "cache"))


async def vector(
    program: Path | ModelSpec, preprocessing: Preprocessing | str | None = None
) -> np.ndarray:
    async with ImageEmbeddings(program, preprocessing=preprocessing) as model:
        return await model.forward(PICTURE)


async def test_a_program_without_preprocessing_is_an_error_that_lists_the_ways(
    program: Path,
) -> None:
    with pytest.raises(UnknownPreprocessing) as caught:
        await vector(program)
    for way in ("preprocessing=", "mine.json", "preprocessor_config.json", "rne", "describe"):
        assert way in str(caught.value)


async def test_a_preset_takes_the_size_and_the_layout_of_the_program(program: Path) -> None:
    by_name = await vector(program, "imagenet")
    assert by_name.shape == (16,)
    size = {"height": 32, "width": 32, "shortest_edge": 37}
    exact = IMAGENET_PREPROCESSING.model_copy(update=size)
    other = await vector(PROGRAMS / "plain_nchw.pte", exact)
    assert cosine_similarity(by_name, other) > 0.99999
    assert cosine_similarity(by_name, await vector(program, "rne")) < 0.999


async def test_the_layouts_of_one_network_give_one_vector(tmp_path: Path) -> None:
    """Channels first, channels last, and channels last by the strides alone."""
    expected = await vector(known("plain_nchw", tmp_path), "imagenet")
    for name in ("plain_nhwc", "plain_strided"):
        found = await vector(known(name, tmp_path), "imagenet")
        assert cosine_similarity(found, expected) > 0.99999


async def test_a_sidecar_and_a_hub_config_are_read_in_this_order(program: Path) -> None:
    size = {"height": 224, "width": 224}
    config = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    program.with_name("preprocessor_config.json").write_text(json.dumps(config))
    from_hub = await vector(program)
    assert from_hub.shape == (16,)
    program.with_name("preprocessor_config.json").unlink()
    nested = json.dumps({"processor_class": "CLIPProcessor", "image_processor": config})
    program.with_name("processor_config.json").write_text(nested)
    assert cosine_similarity(await vector(program), from_hub) > 0.99999
    program.with_suffix(".json").write_text(json.dumps({"preprocessing": {**size}}))
    with pytest.raises(InvalidConfig, match=r"mine\.json.*resize"):
        await vector(program)


async def test_a_preset_is_refused_for_a_program_that_takes_no_image() -> None:
    with pytest.raises(WrongDimensions, match="which is not a float32 image"):
        await vector(PROGRAMS.parent / "text" / "fixtures" / "hook_text.pte", "clip")


async def test_a_sidecar_that_does_not_fit_names_both_shapes(program: Path) -> None:
    said = {"format": 1, "preprocessing": RNE_PREPROCESSING.model_dump()}
    program.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(WrongDimensions, match=r"224.*32"):
        await vector(program)
    program.with_suffix(".json").write_text(json.dumps({**said, "format": 9}))
    with pytest.raises(InvalidConfig, match=r"mine\.json.*format"):
        await vector(program)


async def test_a_preprocessing_that_is_neither_a_preset_nor_a_file_is_refused(
    program: Path,
) -> None:
    with pytest.raises(InvalidConfig, match="imagnet"):
        await vector(program, "imagnet")
    with pytest.raises(InvalidConfig, match=r"absent\.json"):
        await vector(program, "absent.json")


async def test_a_program_whose_vector_is_constant_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(PROGRAMS / "constant.pte", tmp_path / "constant.pte"))
    with pytest.raises(InvalidProgram, match="same vector for two different pictures"):
        await vector(path, "rne")


async def test_a_text_program_whose_vector_is_constant_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(PROGRAMS / "constant_text.pte", tmp_path / "constant.pte"))
    with pytest.raises(InvalidProgram, match="same vector for two different texts"):
        await probing.probe(path)


async def test_the_embedding_of_several_outputs_must_be_declared(
    tmp_path: Path,
) -> None:
    mine = known("several", tmp_path)
    with pytest.raises(InvalidConfig, match=r"nothing says which.*--output"):
        await vector(mine, "rne")
    second = await vector(mine.model_copy(update={"output": 1}), "rne")
    third = await vector(mine.model_copy(update={"output": 2}), "rne")
    assert cosine_similarity(second * second, third) > 0.99999  # it is squared there
    with pytest.raises(InvalidConfig, match="none of number 3"):
        await vector(mine.model_copy(update={"output": 3}), "rne")
    (tmp_path / "mine.json").write_text(json.dumps({"output": 2}))
    assert cosine_similarity(await vector(mine, "rne"), third) > 0.99999


def known(name: str, folder: Path) -> ModelSpec:
    """A copy of a program, as `mine.pte`, of a hash that is known: it needs no trial."""
    path = Path(shutil.copy(PROGRAMS / f"{name}.pte", folder / "mine.pte"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelSpec(name="mine", source=str(path), modality="image", sha256=digest)


async def test_the_only_output_that_is_a_vector_is_the_embedding(tmp_path: Path) -> None:
    found = await vector(known("one_vector", tmp_path), "rne")
    plain = await vector(known("plain_nchw", tmp_path), "rne")
    assert cosine_similarity(found, plain) > 0.99999


def _manifest(**changes: object) -> str:
    names = ["last_hidden_state", "pooler_output", "attentions"]
    specification = [1, {"type": "ModelOutput", "context": json.dumps(names)}]
    component = {"file": "mine.pte", "metadata": {"out_spec": json.dumps(specification)}}
    manifest = {"schema_version": 1, "components": {"model": component}}
    return json.dumps({**manifest, **changes})


async def test_an_export_of_transformers_names_its_outputs(tmp_path: Path) -> None:
    mine = known("several", tmp_path)
    second = await vector(mine.model_copy(update={"output": 1}), "rne")
    (tmp_path / "export.json").write_text(_manifest())
    assert cosine_similarity(await vector(mine, "rne"), second) > 0.99999
    (tmp_path / "export.json").write_text(_manifest(schema_version=2))
    with pytest.raises(InvalidConfig, match=r"export\.json.*schema_version is 2"):
        await vector(mine, "rne")
    (tmp_path / "export.json").write_text(_manifest(components=[]))
    with pytest.raises(InvalidConfig, match=r"export\.json.*components"):
        await vector(mine, "rne")


async def test_a_schema_that_does_not_fit_its_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidProgram, match=r"get_model_schema.*outputs of forward"):
        await vector(known("wrong_schema", tmp_path), "rne")


async def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = known("plain_nchw", tmp_path)
    hashed = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    await vector(mine, "rne")
    await vector(mine, "imagenet")
    assert hashed == [mine.source]
    replacement = known("plain_nhwc", tmp_path)
    with pytest.raises(IntegrityError):
        await vector(mine, "rne")
    await vector(replacement, "rne")
    assert hashed == [mine.source] * 2


def test_a_trial_counts_for_the_file_and_the_version_that_passed_it(program: Path) -> None:
    cache = program.with_name("cache")
    LocalFile(program, cache).mark_tried("1.5")
    assert LocalFile(program, cache).was_tried("1.5")
    assert not LocalFile(program, cache).was_tried("1.6")
    program.write_bytes(program.read_bytes() + b" ")
    assert not LocalFile(program, cache).was_tried("1.5")


def test_a_record_that_cannot_be_written_does_not_fail_the_load(program: Path) -> None:
    cache = program.with_name("a file")
    cache.write_text("in the way")
    file = LocalFile(program, cache)
    file.mark_tried("1.5")
    assert file.was_tried("1.5")
    assert file.sha256() == hashlib.sha256(program.read_bytes()).hexdigest()
    assert not LocalFile(program, cache).was_tried("1.5")


def test_a_record_that_is_damaged_is_made_again(program: Path, tmp_path: Path) -> None:
    file = LocalFile(program, tmp_path / "records")
    file.mark_tried("1.5")
    (record,) = (tmp_path / "records").rglob("*.json")
    record.write_text("{")
    assert not LocalFile(program, tmp_path / "records").was_tried("1.5")
    file.sha256()
    assert json.loads(record.read_text())["sha256"] == file.sha256()


async def test_without_a_python_to_start_the_trial_says_what_to_set(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ProbeIncomplete, match=r"sys\.executable is empty.*AIOEMBED_PYTHON"):
        await probing.probe(program)
    assert (await vector(known("plain_nchw", program.parent), "rne")).shape == (16,)


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "did not end"),
        ("#!/bin/sh\nkill -9 $$\n", "memory ran out"),
        ("no interpreter", "AIOEMBED_PYTHON"),
    ],
)
async def test_a_trial_that_could_not_be_finished_says_why_and_keeps_the_file(
    program: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    python = program.with_name("python")
    python.write_text(script)
    python.chmod(0o755)
    monkeypatch.setenv("AIOEMBED_PYTHON", str(python))
    with pytest.raises(ProbeIncomplete, match=words):
        await probing.probe(program, seconds=1)
    assert await anyio.Path(program).exists()


VALUES: dict[str, st.SearchStrategy[object]] = {
    "height": st.sampled_from([112, 224, 448]),
    "width": st.sampled_from([112, 224, 448]),
    "resize": st.sampled_from(["stretch", "crop", "letterbox"]),
    "interpolation": st.sampled_from(["bilinear", "bicubic"]),
    "antialias": st.booleans(),
    "scale": st.sampled_from([1.0, 1 / 255, 1 / 127.5]),
    "mean": st.tuples(*[st.sampled_from([0.0, 0.25, 0.5])] * 3),
    "std": st.tuples(*[st.sampled_from([0.25, 0.5, 1.0])] * 3),
    "program_mean": st.tuples(*[st.sampled_from([0.0, 0.25])] * 3),
    "program_std": st.tuples(*[st.sampled_from([0.5, 1.0])] * 3),
}
GEOMETRY = ("height", "width", "resize", "interpolation", "antialias")


def space_of(preprocessing: Preprocessing) -> str:
    return EmbeddingSpace.of(
        weights="w", preprocessing=preprocessing, normalized=True, precision="fp32"
    ).id


def values(fields: dict[str, Any]) -> list[list[float]]:
    """The program's value of the levels 0 and 255 of each channel, after its own arithmetic."""
    return [
        [((level * fields["scale"] - mean) / std - inner) / outer for level in (0, 255)]
        for mean, std, inner, outer in zip(
            fields["mean"],
            fields["std"],
            fields["program_mean"],
            fields["program_std"],
            strict=True,
        )
    ]


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries(VALUES), st.fixed_dictionaries(VALUES))
def test_two_spaces_are_equal_exactly_if_their_pixels_are(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same_pixels = [one[name] for name in GEOMETRY] == [other[name] for name in GEOMETRY]
    same_values = np.allclose(values(one), values(other), rtol=1e-12)
    ids = [space_of(Preprocessing(**fields)) for fields in (one, other)]
    assert (ids[0] == ids[1]) == (same_pixels and same_values)


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(VALUES), st.sampled_from(sorted(VALUES)), st.data())
def test_a_change_of_one_field_changes_the_space(
    fields: dict[str, Any], name: str, data: st.DataObject
) -> None:
    changed = {**fields, name: data.draw(VALUES[name])}
    before, after = (space_of(Preprocessing(**one)) for one in (fields, changed))
    assert (before == after) == (changed[name] == fields[name])


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(VALUES))
def test_arithmetic_outside_and_inside_the_program_is_one_space(fields: dict[str, Any]) -> None:
    plain = {**fields, "program_mean": (0.0,) * 3, "program_std": (1.0,) * 3}
    inside = {
        **plain,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "program_mean": plain["mean"],
        "program_std": plain["std"],
    }
    assert space_of(Preprocessing(**plain)) == space_of(Preprocessing(**inside))


@pytest.mark.parametrize(
    ("field", "value"), [("shortest_edge", 256), ("pad_value", (114, 114, 114))]
)
def test_what_a_crop_or_a_letterbox_does_is_part_of_the_space(field: str, value: object) -> None:
    resize = "crop" if field == "shortest_edge" else "letterbox"
    plain = RNE_PREPROCESSING.model_copy(update={"resize": resize})
    assert space_of(plain) != space_of(plain.model_copy(update={field: value}))


def test_images_and_texts_compare_by_the_weights_alone() -> None:
    def space(modality: Modality, weights: str, pixels: Preprocessing | None) -> EmbeddingSpace:
        return EmbeddingSpace.of(
            weights=weights,
            preprocessing=pixels,
            normalized=True,
            precision="fp32",
            modality=modality,
        )

    images = space("image", "clip", CLIP_PREPROCESSING)
    assert images.is_compatible(space("text", "clip", None))
    assert space("text", "clip", None).is_compatible(images)
    assert not images.is_compatible(space("text", "other", CLIP_PREPROCESSING))
    assert not images.is_compatible(space("image", "clip", RNE_PREPROCESSING))
    assert images == EmbeddingSpace(base=images.base)  # as an index of an earlier version has it


def test_folded_and_unfolded_forms_of_the_same_arithmetic_agree() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    outside = CLIP_PREPROCESSING.model_copy(update={"mean": mean, "std": std})
    inside = CLIP_PREPROCESSING.model_copy(update={"program_mean": mean, "program_std": std})
    levels = {
        "scale": 1.0,
        "mean": tuple(255 * one for one in mean),
        "std": tuple(255 * one for one in std),
    }
    of_levels = CLIP_PREPROCESSING.model_copy(update=levels)
    assert outside.pixels_id == inside.pixels_id == of_levels.pixels_id
    np.testing.assert_allclose(
        preprocess(PICTURE, outside), preprocess(PICTURE, of_levels), atol=1e-5
    )


def test_the_layout_does_not_decide_the_space() -> None:
    nhwc = RNE_PREPROCESSING.model_copy(update={"layout": "nhwc"})
    assert nhwc.pixels_id == RNE_PREPROCESSING.pixels_id
    np.testing.assert_array_equal(
        preprocess(PICTURE, nhwc).transpose(0, 3, 1, 2), preprocess(PICTURE, RNE_PREPROCESSING)
    )
