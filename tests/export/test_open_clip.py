"""Checkpoints of open_clip's format become transformers'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from aioembed.errors import CheckpointError  # noqa: E402
from aioembed.export.checkpoint import Checkpoint  # noqa: E402
from aioembed.export.open_clip import convert  # noqa: E402

from .checkpoints import TINY_TEXT, TINY_VISION, save_clip  # noqa: E402

pytestmark = pytest.mark.export

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "layers": 2,
            "width": 48,
            "head_width": 16,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "vocab_size": 600, "mlp_ratio": 2.0},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"},
}


def open_clip_state(state: dict[str, Any]) -> dict[str, Any]:
    """Name transformers' tensors as open_clip does: by another way than the code under test."""
    found = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
            for index in range(2):
                old = f"{tower}.encoder.layers.{index}"
                new = f"{prefix}transformer.resblocks.{index}"
                qkv = [state[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                found[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
                found[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
                for part, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                    found[f"{new}.{part}.{kind}"] = state[f"{old}.{name}.{kind}"]
                for part, name in (("c_fc", "fc1"), ("c_proj", "fc2")):
                    found[f"{new}.mlp.{part}.{kind}"] = state[f"{old}.mlp.{name}.{kind}"]
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny CLIP in open_clip's format, and the one it was made of beside it."""
    gelu = {"hidden_act": "gelu"}
    whole = save_clip(
        tmp_path / "whole",
        projection_dim=16,
        text_config=TINY_TEXT | gelu,
        vision_config=TINY_VISION | gelu,
    )
    folder = tmp_path / "open-clip"
    folder.mkdir()
    state = open_clip_state(load_file(whole / "model.safetensors"))
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_converted_checkpoint_has_the_tensors_and_sizes_of_the_original(
    source: Path, tmp_path: Path
) -> None:
    folders = [str(source), str(tmp_path / "to")]
    command = [sys.executable, "-m", "aioembed.export.open_clip", *folders]
    subprocess.run(command, check=True, capture_output=True)

    found, wanted = Checkpoint.open(tmp_path / "to"), Checkpoint.open(source.with_name("whole"))
    assert found.fingerprint == wanted.fingerprint
    assert found.vision == wanted.vision
    assert found.text == wanted.text
    pixels = found.pixels("checkpoint")
    assert (pixels.mean, pixels.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (pixels.preprocessing.height, pixels.preprocessing.resize) == (32, "crop")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["model_cfg"]["vision_cfg"].update(timm_model_name="vit"), "timm"),
        (lambda config: config["model_cfg"]["text_cfg"].pop("heads"), "heads"),
        (lambda config: config["preprocess_cfg"].update(interpolation="lanczos"), "lanczos"),
        (lambda config: config.clear(), "model_cfg"),
    ],
)
def test_other_models_of_open_clip_are_refused(source: Path, change: Any, message: str) -> None:
    config = json.loads(json.dumps(CONFIG))
    change(config)
    (source / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        convert(source, source.with_name("to"))


def test_a_tensor_that_clip_does_not_have_is_named(source: Path) -> None:
    file = source / "open_clip_model.safetensors"
    save_file(load_file(file) | {"visual.trunk.norm": torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match=r"visual\.trunk\.norm"):
        convert(source, source.with_name("to"))
    file.unlink()
    with pytest.raises(CheckpointError, match="none of"):
        convert(source, source.with_name("to"))
