"""Checkpoints that cannot be exported are refused before any work, and the error says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from aioembed.errors import CheckpointError, DiskFull, ExportError, InvalidConfig  # noqa: E402
from aioembed.export import ExportOptions, export_model  # noqa: E402
from aioembed.export.checkpoint import Checkpoint, locate  # noqa: E402

from .checkpoints import TINY_VISION, rewrite, save_tiny  # noqa: E402
from .conftest import Checkpoints  # noqa: E402

pytestmark = pytest.mark.export

State = dict[str, Any]
_FC1 = "vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    """A tiny CLIP that may be changed."""
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def resize(state: State) -> None:
    state[_FC1] = state[_FC1][:-1]


def spoil(state: State) -> None:
    state[_FC1][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(_FC1), f"lacks {_FC1}"),
        (
            lambda state: state.update({"head.weight": torch.ones(3)}),
            "unknown tensors: head.weight",
        ),
        (resize, "other shapes than its config says"),
        (spoil, f"NaN or infinite values in {_FC1}"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    folder: Path, change: Callable[[State], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(rewrite(folder, change))


@pytest.mark.parametrize("kind", ["bert", "chinese_clip", "vit", 3, None])
def test_an_unknown_model_type_lists_the_known_ones(folder: Path, kind: object) -> None:
    rewrite(folder, lambda _state: None, {"model_type": kind})
    with pytest.raises(CheckpointError, match=r"CLIP .*SigLIP .*DINOv2 .*Your own model"):
        Checkpoint.open(folder)


def test_a_siglip_of_variable_resolution_is_refused_with_the_reason(folder: Path) -> None:
    rewrite(folder, lambda _state: None, {"model_type": "siglip2"})
    with pytest.raises(CheckpointError, match=r"NaFlex.*any resolution.*fixed resolution"):
        Checkpoint.open(folder)


def test_a_siglip_without_a_pooling_head_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "siglip")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no pooling head"):
        Checkpoint.open(tmp_path)


def test_open_clips_own_format_is_refused_with_the_command_that_converts(
    folder: Path, tmp_path: Path
) -> None:
    rewrite(folder, lambda state: state.update({"visual.conv1.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"python -m aioembed\.export\.open_clip"):
        Checkpoint.open(folder)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"python -m aioembed\.export\.open_clip"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov2-swiglu", "dinov2-registers"])
def test_every_tensor_of_every_family_is_known(tiny: Checkpoints, name: str) -> None:
    checkpoint = Checkpoint.open(tiny(name))
    assert (checkpoint.text is None) == name.startswith("dinov2")
    assert checkpoint.shape("image").layers == 2


@pytest.mark.parametrize("name", ["siglip", "dinov2-registers"])
def test_a_tensor_that_another_family_lacks_is_named(tmp_path: Path, name: str) -> None:
    dropped: list[str] = []

    def drop(state: State) -> None:
        dropped.append(next(name for name in state if "probe" in name or "register" in name))
        del state[dropped[0]]

    with pytest.raises(CheckpointError, match="lacks ") as caught:
        Checkpoint.open(rewrite(save_tiny(tmp_path, name), drop))
    assert dropped[0] in str(caught.value)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"num_channels": 4}, "3 channels"),
        ({"image_size": 33}, "whole patches"),
        ({"num_attention_heads": 5}, "heads"),
    ],
)
def test_sizes_that_cannot_be_rewritten_are_refused(
    folder: Path, vision: dict[str, Any], message: str
) -> None:
    rewrite(folder, lambda _state: None, {"vision_config": TINY_VISION | vision})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>not found</html>"])
def test_unreadable_safetensors_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="fetch the checkpoint again"):
        Checkpoint.open(folder)


def test_truncated_safetensors_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="fetch the checkpoint again"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model_type": "clip", "text_config": 3}'])
def test_unreadable_configs_are_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(folder)


def test_a_folder_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Checkpoint.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(folder)


def test_a_path_that_is_not_a_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        locate(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="not a folder"):
        locate("./missing/folder")


def test_a_failed_hub_download_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="no route to host"):
        locate("somebody/some-clip")


def test_shards_and_one_file_have_one_fingerprint(folder: Path) -> None:
    whole = Checkpoint.open(folder).fingerprint
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert Checkpoint.open(folder).fingerprint == whole


def test_pickled_weights_are_read_if_they_are_tensors_only(folder: Path) -> None:
    safe = Checkpoint.open(folder).fingerprint
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert Checkpoint.open(folder).fingerprint == safe

    torch.save({"weights": folder}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert it to safetensors"):
        Checkpoint.open(folder)


def test_the_preprocessor_config_says_how_images_are_prepared(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"image_mean": [0.5, 0.4, 0.3], "size": 40, "resample": 2}))
    pixels = Checkpoint.open(folder).pixels("checkpoint")
    assert pixels.mean == (0.5, 0.4, 0.3)
    found = pixels.preprocessing
    assert (found.height, found.width, found.resize) == (32, 32, "crop")
    assert (found.shortest_edge, found.interpolation, found.antialias) == (40, "bilinear", True)

    file.unlink()  # transformers 5 writes it into the processor's file
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert Checkpoint.open(folder).pixels("checkpoint").preprocessing.shortest_edge is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.5]}, "three values"),
        ({"image_std": [0.0, 1.0, 1.0]}, "positive"),
        ({"resample": 1}, "neither bilinear"),
        ({"rescale_factor": 1 / 127.5}, "1 / 255"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"height": 20, "width": 30}, "do_center_crop": False}, "one square"),
        ({"size": {"longest_edge": 30}}, "one square"),
        ({"do_center_crop": False}, "height"),
        ({"size": "large"}, "cannot be followed"),
    ],
)
def test_a_preprocessing_that_no_program_can_do_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder).pixels("checkpoint")


def test_without_a_preprocessor_the_way_must_be_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match="--preprocess"):
        checkpoint.pixels("checkpoint")
    assert checkpoint.pixels("clip").preprocessing.resize == "crop"
    assert checkpoint.pixels("siglip").mean == (0.5, 0.5, 0.5)


def test_images_of_another_size_need_positions_that_can_be_interpolated(
    tiny: Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="for images of 32 pixels, not of 48"):
        export_model(tiny("clip"), tmp_path / "a.pte", ExportOptions(image_size=48))
    with pytest.raises(CheckpointError, match="50 pixels are not whole patches of 8"):
        export_model(tiny("dinov2"), tmp_path / "a.pte", ExportOptions(image_size=50))
    with pytest.raises(InvalidConfig, match="DINOv2"):
        export_model(tiny("siglip"), tmp_path / "a.pte", ExportOptions(pooling="mean"))


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_padded_texts_need_the_tokenizers_files(
    tiny: Checkpoints, tmp_path: Path, missing: str
) -> None:
    folder = Path(shutil.copytree(tiny("siglip"), tmp_path / "siglip"))
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"padded with: .*{missing}"):
        export_model(folder, tmp_path / "a.pte", ExportOptions(tower="text"))


def test_the_licence_is_read_where_there_is_one(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.licence is None
    (folder / "LICENSE").write_text("You may use this for Non-Commercial purposes.")
    assert checkpoint.licence == "LICENSE: not for commercial use"
    (folder / "LICENSE").write_text("Permission is hereby granted, free of charge")
    assert checkpoint.licence == "LICENSE"
    (folder / "LICENSE").unlink()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert checkpoint.licence == "cc-by-nc-4.0: not for commercial use"


def test_a_tower_that_the_checkpoint_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    def drop_text(state: State) -> None:
        for name in list(state):
            if not name.startswith("vi"):
                del state[name]

    rewrite(folder, drop_text, {"model_type": "clip_vision_model", **TINY_VISION})
    with pytest.raises(CheckpointError, match="has an image tower only"):
        export_model(folder, tmp_path / "text.pte", ExportOptions(tower="text"))


def test_a_folder_of_no_images_cannot_calibrate(tiny_clip: Path, tmp_path: Path) -> None:
    options = ExportOptions(tower="image", calibrate=tmp_path)
    with pytest.raises(InvalidConfig, match="no images"):
        export_model(tiny_clip, tmp_path / "image.pte", options)


def test_a_missing_output_folder_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="folder that exists"):
        export_model("never/read", tmp_path / "no" / "image.pte", ExportOptions(tower="image"))


def test_a_full_disk_leaves_no_file(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    folder = tmp_path / "programs"
    folder.mkdir()
    with pytest.raises(DiskFull, match="make space"):
        export_model(tiny_clip, folder / "image.pte", ExportOptions(tower="image"))
    assert list(folder.iterdir()) == []
