"""The rewritten towers compute what transformers' do."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from aioembed.export.blocks import CentredNorm  # noqa: E402
from aioembed.export.checkpoint import Checkpoint  # noqa: E402
from aioembed.export.families import TextShape, VisionShape  # noqa: E402
from aioembed.export.samples import text_samples  # noqa: E402
from aioembed.export.towers import build_tower, reference  # noqa: E402
from aioembed.export.tune import balance, choose_norm, choose_table, preferred_form  # noqa: E402

from .checkpoints import (  # noqa: E402
    TINY,
    TINY_TEXT,
    TINY_VISION,
    make_heavy_tailed,
    rewrite,
    save_clip,
    save_tiny,
    save_tokenizer,
)
from .conftest import Checkpoints  # noqa: E402

pytestmark = pytest.mark.export

NORMS = ("ln", "bn")


TOWERS = [
    *itertools.product(TINY, ["image"]),
    *itertools.product(["clip", "clip-gelu", "siglip"], ["text"]),
]


def shape_of(checkpoint: Checkpoint, tower: Any, pooling: Any = None) -> Any:
    """Return a tower for images that are prepared as the checkpoint says."""
    if tower == "text":
        return checkpoint.text
    assert checkpoint.vision is not None
    shape = checkpoint.vision.fed(checkpoint.pixels("checkpoint"))
    return replace(shape, pooling=pooling or shape.pooling)


def patches(shape: VisionShape, count: int = 3) -> list[tuple[Any, ...]]:
    """Random images as patches."""
    generator = torch.Generator().manual_seed(1)
    size = (1, shape.patches, 3 * shape.patch_size**2)
    return [(torch.rand(*size, generator=generator),) for _ in range(count)]


def inputs(checkpoint: Checkpoint, shape: Any) -> Any:
    if isinstance(shape, TextShape):
        return text_samples(shape, checkpoint.tokenization())
    return patches(shape)


def run(module: Any, samples: Any) -> Any:
    with torch.no_grad():
        return torch.cat([module(*sample) for sample in samples])


def dynamic_of(shape: Any) -> Any:
    if isinstance(shape, VisionShape):
        return "batch"
    return None if shape.end_of_text is None else "tokens"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "tower"), TOWERS)
def test_a_rewritten_tower_gives_the_vectors_of_transformers(
    tiny: Checkpoints, name: str, tower: Any, norm: Any
) -> None:
    """DINOv2's preprocessor is for 32 pixels here and its positions for 56."""
    checkpoint = Checkpoint.open(tiny(name))
    shape = shape_of(checkpoint, tower)
    samples = inputs(checkpoint, shape)
    wanted = reference(checkpoint, shape, samples)
    assert float((wanted @ wanted.T).min()) < 0.999

    for dynamic in (None, "batch") if tower == "image" else (dynamic_of(shape),):
        vectors = run(build_tower(checkpoint, shape, norm=norm, dynamic=dynamic), samples)
        assert torch.allclose(vectors, wanted, atol=2e-6)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_mean_of_the_patches_leaves_out_the_other_tokens(
    tiny: Checkpoints, name: str, norm: Any
) -> None:
    checkpoint = Checkpoint.open(tiny(name))
    shape = shape_of(checkpoint, "image", "mean")
    samples = patches(shape)

    vectors = run(build_tower(checkpoint, shape, norm=norm, dynamic="batch"), samples)

    assert torch.allclose(vectors, reference(checkpoint, shape, samples), atol=2e-6)
    by_class = reference(checkpoint, shape_of(checkpoint, "image"), samples)
    assert not torch.allclose(vectors, by_class, atol=1e-2)


def test_the_gelu_by_tanh_is_not_the_one_by_erf(tiny: Checkpoints, tmp_path: Path) -> None:
    """XNNPACK's lowering takes both for the latter; a graph that has either would be wrong."""
    checkpoint = Checkpoint.open(tiny("siglip"))
    shape = shape_of(checkpoint, "image")
    samples = patches(shape)
    (given,) = samples[0]
    exported = torch.export.export(
        build_tower(checkpoint, shape, norm="bn", dynamic=None), (given,)
    )
    assert not [node for node in exported.graph.nodes if "gelu" in str(node.target)]

    by_tanh = build_tower(checkpoint, shape, norm="ln", dynamic=None)
    by_erf = build_tower(checkpoint, replace(shape, activation="gelu"), norm="ln", dynamic=None)
    difference = (run(by_tanh, samples) - run(by_erf, samples)).abs().max()
    assert float(difference) > 2e-6  # what the comparison with transformers allows


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_gives_what_its_images_give_one_by_one(tiny_clip: Path, norm: Any) -> None:
    checkpoint = Checkpoint.open(tiny_clip)
    shape = shape_of(checkpoint, "image")
    tower = build_tower(checkpoint, shape, norm=norm, dynamic="batch")
    samples = patches(shape)

    together = run(tower, [(torch.cat([sample[0] for sample in samples]),)])

    assert torch.allclose(together, run(tower, samples), atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "heads", "layers"), [(28, 14, 2, 1), (48, 16, 4, 3)]
)
def test_other_sizes_of_vit_are_rewritten_by_the_same_code(
    tmp_path: Path, image_size: int, patch_size: int, heads: int, layers: int
) -> None:
    sizes = {"image_size": image_size, "patch_size": patch_size}
    counts = {"num_attention_heads": heads, "num_hidden_layers": layers}
    save_clip(
        tmp_path,
        projection_dim=16,
        text_config=TINY_TEXT,
        vision_config=TINY_VISION | sizes | counts,
    )
    checkpoint = Checkpoint.open(tmp_path)
    shape = shape_of(checkpoint, "image")
    samples = patches(shape)

    vectors = run(build_tower(checkpoint, shape, norm="bn", dynamic="batch"), samples)

    assert torch.allclose(vectors, reference(checkpoint, shape, samples), atol=2e-6)


def test_old_configs_pool_the_highest_token(tmp_path: Path) -> None:
    """They say `eos_token_id` 2, whatever the vocabulary's end of text."""
    save_clip(
        tmp_path,
        projection_dim=16,
        text_config=TINY_TEXT | {"eos_token_id": 2},
        vision_config=TINY_VISION,
    )
    checkpoint = Checkpoint.open(tmp_path)
    shape = shape_of(checkpoint, "text")
    assert shape.end_of_text == TINY_TEXT["vocab_size"] - 1
    samples = text_samples(shape)

    vectors = run(build_tower(checkpoint, shape, norm="ln", dynamic="tokens"), samples)

    assert torch.allclose(vectors, reference(checkpoint, shape, samples), atol=2e-6)


def test_texts_to_judge_on_repeat_words_as_well(tiny_clip: Path) -> None:
    """A row of one emoji lost 3 % of its cosine where only texts of different words were tried."""
    shape = shape_of(Checkpoint.open(tiny_clip), "text")

    texts = [sample[0][0].tolist() for sample in text_samples(shape)]

    assert {text[-1] for text in texts} == {shape.end_of_text}
    assert max(map(len, texts)) == shape.context_length
    long = [text[1:-1] for text in texts if len(text) > 8]
    assert sum(len(set(words)) == 1 for words in long) >= 16
    assert max(len(set(words)) for words in long) > shape.context_length // 2


def add_outliers_to_tokens(state: dict[str, Any]) -> None:
    """Make one channel of every token large, which a norm scales down again."""
    for name, tensor in state.items():
        if name.endswith("token_embedding.weight"):
            tensor[:, 0] = 20 * tensor.std()
        if "text_model" in name and "layer_norm1.weight" in name:
            tensor[0] = 0


@pytest.mark.parametrize(("outliers", "dtype"), [(False, torch.int8), (True, torch.int16)])
def test_the_token_table_is_int16_where_int8_loses_too_much(
    tmp_path: Path, outliers: bool, dtype: Any
) -> None:
    folder = save_tiny(tmp_path)
    checkpoint = Checkpoint.open(rewrite(folder, add_outliers_to_tokens) if outliers else folder)
    shape = shape_of(checkpoint, "text")
    samples = text_samples(shape)
    wanted = reference(checkpoint, shape, samples)
    build = partial(build_tower, checkpoint, shape, norm="ln", dynamic="tokens")

    module, reason = choose_table(build, samples, wanted)

    assert module.get_buffer("table.weight").dtype is dtype
    assert reason.startswith(str(dtype).removeprefix("torch."))
    assert (run(module, samples) * wanted).sum(-1).min() > 0.9995


@pytest.mark.parametrize(("name", "tower"), TOWERS)
def test_the_residual_stream_is_centred_in_the_form_bn(
    tiny: Checkpoints, name: str, tower: Any
) -> None:
    checkpoint = Checkpoint.open(tiny(name))
    shape = shape_of(checkpoint, tower)
    module = build_tower(checkpoint, shape, norm="bn", dynamic=dynamic_of(shape))
    means: list[float] = []
    for part in module.modules():
        if isinstance(part, CentredNorm):
            part.register_forward_pre_hook(
                lambda _part, args: means.append(float(args[0].mean(-1).abs().max()))
            )
    run(module, inputs(checkpoint, shape))

    assert len(means) > 4
    assert max(means) < 1e-5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "tower"), TOWERS)
def test_balancing_changes_no_vector(tmp_path: Path, name: str, tower: Any, norm: Any) -> None:
    folder = save_tokenizer(rewrite(save_tiny(tmp_path, name), make_heavy_tailed))
    checkpoint = Checkpoint.open(folder)
    shape = shape_of(checkpoint, tower)
    samples = inputs(checkpoint, shape)
    module = build_tower(checkpoint, shape, norm=norm, dynamic=dynamic_of(shape))
    before = run(module, samples)

    balance(module, samples)

    assert torch.allclose(run(module, samples), before, atol=1e-5)


def chosen(checkpoint: Checkpoint, precision: Any) -> Any:
    shape = shape_of(checkpoint, "image")
    samples = patches(shape)
    return choose_norm(
        lambda norm: build_tower(checkpoint, shape, norm=norm, dynamic=None),
        precision,
        samples,
        reference(checkpoint, shape, samples),
    )


def test_bn_is_taken_where_it_costs_nothing(tiny_clip: Path) -> None:
    choice = chosen(Checkpoint.open(tiny_clip), "fp32")
    assert choice.form == "bn"
    assert "no worse" in choice.reason


@pytest.mark.parametrize(
    ("bn_loss", "ln_loss", "precision", "form"),
    [
        (1e-7, 2e-7, "fp32", "bn"),
        (5e-5, 1e-7, "fp32", "ln"),
        (3e-4, 2.5e-4, "int8", "bn"),
        (5e-4, 2.5e-4, "int8", "ln"),
        (4.2e-2, 3.9e-2, "int8", "bn"),
        (5e-2, 3.9e-2, "int8", "ln"),
        (float("inf"), 1e-7, "fp32", "ln"),
    ],
)
def test_ln_is_taken_where_bn_loses_more_than_rounding_explains(
    bn_loss: float, ln_loss: float, precision: Any, form: str
) -> None:
    assert preferred_form(bn_loss, ln_loss, precision) == form


def test_the_check_measures_outliers(tmp_path: Path) -> None:
    choice = chosen(Checkpoint.open(rewrite(save_tiny(tmp_path), make_heavy_tailed)), "int8")

    found = re.search(r"residual channel is (\d+) times", choice.reason)
    assert found
    assert int(found[1]) >= 8
