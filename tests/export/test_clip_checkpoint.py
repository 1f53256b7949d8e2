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
from aioembed.export.clip import ClipOptions, export_clip, program  # noqa: E402
from aioembed.export.clip.checkpoint import Checkpoint, locate  # noqa: E402
from aioembed.export.lowering import Delegation, Lowered  # noqa: E402

from .clip_checkpoints import TINY_VISION, rewrite  # noqa: E402

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
        (resize, "other shapes than its config tells"),
        (spoil, f"no numbers in {_FC1}"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    folder: Path, change: Callable[[State], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(rewrite(folder, change))


@pytest.mark.parametrize("kind", ["bert", "siglip", "chinese_clip", None])
def test_other_models_are_not_taken_for_clip(folder: Path, kind: str | None) -> None:
    rewrite(folder, lambda _state: None, {"model_type": kind})
    with pytest.raises(CheckpointError, match="not of CLIP"):
        Checkpoint.open(folder)


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


def test_what_is_no_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        locate(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no folder"):
        locate("./missing/folder")


def test_a_hub_that_does_not_deliver_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_preprocessor_config_gives_mean_and_std(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}))
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.mean, checkpoint.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))

    file.write_text('{"image_mean": [0.5], "image_std": [0.2]}')
    with pytest.raises(CheckpointError, match="three values"):
        Checkpoint.open(folder)


def test_a_tower_that_the_checkpoint_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    def drop_text(state: State) -> None:
        for name in list(state):
            if not name.startswith("vi"):
                del state[name]

    rewrite(folder, drop_text, {"model_type": "clip_vision_model", **TINY_VISION})
    with pytest.raises(CheckpointError, match="has an image tower only"):
        export_clip(folder, tmp_path / "text.pte", ClipOptions(tower="text"))


def test_a_folder_of_no_images_cannot_calibrate(tiny_clip: Path, tmp_path: Path) -> None:
    options = ClipOptions(tower="image", calibrate=tmp_path)
    with pytest.raises(InvalidConfig, match="no images"):
        export_clip(tiny_clip, tmp_path / "image.pte", options)


def test_a_missing_output_folder_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="folder that exists"):
        export_clip("never/read", tmp_path / "no" / "image.pte", ClipOptions(tower="image"))


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = Lowered([b"x" * 400, b"x" * 600], Delegation(1, ()))
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DiskFull, match="make space"):
        program._write(lowered, tmp_path / "image.pte")
    assert list(tmp_path.iterdir()) == []
