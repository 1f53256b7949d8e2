"""The text tower at full size, from the text to the vector, against transformers itself."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioembed import RNE_PREPROCESSING, ModelSpec
from aioembed.text import TextEmbeddings

from .clip_bpe import Merge, vocabulary
from .strings import texts

pytestmark = pytest.mark.full_size

_TEXTS = [*texts()[:15], *texts()[15::20]]


@pytest.fixture(scope="module")
def checkpoint(clip_tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP checkpoint: ViT-B/32's text tower with seeded random weights, a tiny image tower."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    special = {"bos_token_id": 49406, "eos_token_id": 49407}
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={"initializer_factor": 3.0, **special}, vision_config=vision
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    transformers.CLIPModel(config).save_pretrained(folder)
    shutil.copy(clip_tokenizer_file, folder)
    gc.collect()
    return folder


@pytest.fixture(scope="module")
def eager(checkpoint: Path) -> Any:
    """The text tower of transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPTextModelWithProjection.from_pretrained(checkpoint)
    model.train(mode=False)
    return model


def _write_hook_program(eager: Any, path: Path) -> None:
    """Lower the tower as the React Native hook has it: ids and mask, nothing said inside."""
    torch = pytest.importorskip("torch")
    from aioembed.export.lowering import lower

    class HookTower(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = eager

        def forward(self, ids: Any, mask: Any) -> Any:
            vectors = self.model(input_ids=ids, attention_mask=mask).text_embeds
            return vectors / vectors.norm(dim=-1, keepdim=True)

    ids = torch.tensor([[49406, 320, 1125, 49407]])
    tokens = {1: torch.export.Dim("tokens", min=2, max=77)}
    lower(HookTower(), (ids, torch.ones_like(ids)), dynamic_shapes=(tokens, tokens)).write(path)


@pytest.fixture(scope="module", params=["hook", "ln", "bn"])
def program(request: pytest.FixtureRequest, checkpoint: Path, eager: Any) -> Path:
    """The hook's form, and those that are exported here."""
    from aioembed.export import ExportOptions, export_model

    path = checkpoint / f"{request.param}.pte"
    if request.param == "hook":
        _write_hook_program(eager, path)
    else:
        options = ExportOptions(tower="text", norm=request.param, preprocessing="clip")
        export_model(checkpoint, path, options)
    gc.collect()
    return path


def _reference(eager: Any, merges: list[Merge], *, hides_zero: bool) -> np.ndarray[Any, Any]:
    """The vectors that the transformers tokenizer and model give.

    Args:
        eager: The model.
        merges: The tokenizer's.
        hides_zero: Whether the mask hides token 0, as the hook's does.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary(merges), merges=merges)
    vectors = []
    with torch.no_grad():
        for text in _TEXTS:
            inputs = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
            if hides_zero:
                inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
            vector = eager(**inputs).text_embeds[0].double().numpy()
            vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


def test_vectors_are_those_of_transformers(
    program: Path, eager: Any, clip_merges: list[Merge], clip_tokenizer_file: Path
) -> None:
    spec = ModelSpec(
        name="full-size-text",
        source=str(program),
        modality="text",
        preprocessing=RNE_PREPROCESSING,
        tokenizer_source=str(clip_tokenizer_file),
        checkpoint="random",
    )

    async def embed() -> list[np.ndarray[Any, Any]]:
        async with TextEmbeddings(spec, truncate="silent") as model:
            return [await model.forward(text) for text in _TEXTS]

    ours = np.stack(anyio.run(embed))
    reference = _reference(eager, clip_merges, hides_zero=program.name == "hook.pte")
    cosines = (ours * reference).sum(axis=1) / np.linalg.norm(ours, axis=1)
    others = (reference @ reference.T)[~np.eye(len(_TEXTS), dtype=bool)]
    print(f"{len(_TEXTS)} texts, {program.name}: least cosine {cosines.min():.8f}, ", end="")
    print(f"between unlike texts {others.mean():.3f} on average")
    assert cosines.min() >= 0.99999
