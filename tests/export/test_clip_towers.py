"""The rewritten towers compute what transformers' do."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from aioembed.export.clip.balance import balance  # noqa: E402
from aioembed.export.clip.blocks import CentredNorm  # noqa: E402
from aioembed.export.clip.checkpoint import Checkpoint  # noqa: E402
from aioembed.export.clip.norms import choose_norm, preferred_form  # noqa: E402
from aioembed.export.clip.samples import text_samples  # noqa: E402
from aioembed.export.clip.towers import build_tower, reference  # noqa: E402

from .clip_checkpoints import (  # noqa: E402
    TINY_TEXT,
    TINY_VISION,
    make_heavy_tailed,
    rewrite,
    save_clip,
    save_tiny,
)

pytestmark = pytest.mark.export

NORMS = ("ln", "bn")


def patches(checkpoint: Checkpoint, count: int = 3) -> list[tuple[Any, ...]]:
    """Random images as patches."""
    shape = checkpoint.image_tower()
    generator = torch.Generator().manual_seed(1)
    size = (1, shape.patches, 3 * shape.patch_size**2)
    return [(torch.rand(*size, generator=generator),) for _ in range(count)]


def inputs(checkpoint: Checkpoint, tower: Any) -> Any:
    return patches(checkpoint) if tower == "image" else text_samples(checkpoint.text_tower())


def run(module: Any, samples: Any) -> Any:
    with torch.no_grad():
        return torch.cat([module(*sample) for sample in samples])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_rewritten_tower_gives_the_vectors_of_transformers(
    tmp_path: Path, tower: Any, norm: Any, activation: str
) -> None:
    checkpoint = Checkpoint.open(save_tiny(tmp_path, activation=activation))
    samples = inputs(checkpoint, tower)
    wanted = reference(checkpoint, tower, samples)

    for dynamic in (None, "batch") if tower == "image" else ("tokens",):
        vectors = run(build_tower(checkpoint, tower, norm=norm, dynamic=dynamic), samples)
        assert torch.allclose(vectors, wanted, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_gives_what_its_images_give_one_by_one(tiny_clip: Path, norm: Any) -> None:
    checkpoint = Checkpoint.open(tiny_clip)
    tower = build_tower(checkpoint, "image", norm=norm, dynamic="batch")
    samples = patches(checkpoint)

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
    samples = patches(checkpoint)

    vectors = run(build_tower(checkpoint, "image", norm="bn", dynamic="batch"), samples)

    assert torch.allclose(vectors, reference(checkpoint, "image", samples), atol=2e-6)


def test_old_configs_pool_the_highest_token(tmp_path: Path) -> None:
    """They say `eos_token_id` 2, whatever the vocabulary's end of text."""
    save_clip(
        tmp_path,
        projection_dim=16,
        text_config=TINY_TEXT | {"eos_token_id": 2},
        vision_config=TINY_VISION,
    )
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.text_tower().end_of_text == TINY_TEXT["vocab_size"] - 1
    samples = text_samples(checkpoint.text_tower())

    vectors = run(build_tower(checkpoint, "text", norm="ln", dynamic="tokens"), samples)

    assert torch.allclose(vectors, reference(checkpoint, "text", samples), atol=2e-6)


def test_texts_to_judge_on_repeat_words_as_well(tiny_clip: Path) -> None:
    """A row of one emoji lost 3 % of its cosine where only texts of different words were tried."""
    shape = Checkpoint.open(tiny_clip).text_tower()

    texts = [sample[0][0].tolist() for sample in text_samples(shape)]

    assert {text[-1] for text in texts} == {shape.end_of_text}
    assert max(map(len, texts)) == shape.context_length
    long = [text[1:-1] for text in texts if len(text) > 8]
    assert sum(len(set(words)) == 1 for words in long) >= 16
    assert max(len(set(words)) for words in long) > shape.context_length // 2


def test_the_residual_stream_is_centred_in_the_form_bn(tiny_clip: Path) -> None:
    checkpoint = Checkpoint.open(tiny_clip)
    means = []
    for name in ("image", "text"):
        tower = build_tower(
            checkpoint, name, norm="bn", dynamic="tokens" if name == "text" else None
        )
        for part in tower.modules():
            if isinstance(part, CentredNorm):
                part.register_forward_pre_hook(
                    lambda _part, args: means.append(float(args[0].mean(-1).abs().max()))
                )
        run(tower, inputs(checkpoint, name))

    assert max(means) < 1e-5


@pytest.mark.parametrize(
    ("tower", "norm", "dynamic"),
    [
        *itertools.product(["image"], NORMS, [None, "batch"]),
        *itertools.product(["text"], NORMS, ["tokens"]),
    ],
)
def test_balancing_changes_no_vector(tmp_path: Path, tower: Any, norm: Any, dynamic: Any) -> None:
    checkpoint = Checkpoint.open(rewrite(save_tiny(tmp_path), make_heavy_tailed))
    samples = inputs(checkpoint, tower)
    module = build_tower(checkpoint, tower, norm=norm, dynamic=dynamic)
    before = run(module, samples)

    balance(module, samples)

    assert torch.allclose(run(module, samples), before, atol=1e-5)


def test_bn_is_taken_where_it_costs_nothing(tiny_clip: Path) -> None:
    checkpoint = Checkpoint.open(tiny_clip)
    samples = patches(checkpoint)

    choice = choose_norm(
        checkpoint, "image", "fp32", samples, reference(checkpoint, "image", samples)
    )

    assert choice.form == "bn"
    assert "no worse" in choice.reason


@pytest.mark.parametrize(
    ("bn_loss", "ln_loss", "precision", "form"),
    [
        (1e-7, 2e-7, "fp32", "bn"),
        (5e-5, 1e-7, "fp32", "ln"),
        (3e-4, 2.5e-4, "int8", "bn"),
        (5e-4, 2.5e-4, "int8", "ln"),
        (float("inf"), 1e-7, "fp32", "ln"),
    ],
)
def test_ln_is_taken_where_bn_loses_more_than_rounding_explains(
    bn_loss: float, ln_loss: float, precision: Any, form: str
) -> None:
    assert preferred_form(bn_loss, ln_loss, precision) == form


def test_the_check_measures_outliers(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(rewrite(save_tiny(tmp_path), make_heavy_tailed))
    samples = patches(checkpoint)

    choice = choose_norm(
        checkpoint, "image", "int8", samples, reference(checkpoint, "image", samples)
    )

    found = re.search(r"residual channel is (\d+) times", choice.reason)
    assert found
    assert int(found[1]) >= 8
