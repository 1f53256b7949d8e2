"""Builds the tiny text models of these tests: `python -m tests.text.build_fixtures`.

A `tokenizer.json` of CLIP's format with a few hundred tokens, a random CLIP text tower of
transformers over it, lowered in two forms, and the vectors that transformers itself gives.
Needs the `[export]` extra.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from aioembed.export.lowering import lower
from aioembed.models import CLIP_PREPROCESSING, Modality, ProgramMetadata

from .clip_bpe import END, START, tokenizer_json, train, vocabulary

FIXTURES = Path(__file__).with_name("fixtures")
CONTEXT_LENGTH = 77
DIMENSIONS = 24
LOGIT_SCALE = 25.0
MERGES = 110
CORPUS = """
a photo of a cat, a photo of a dog, a picture of the cats and dogs in the grass; a rocket's start,
a cup of coffee on the table, an astronaut in space, a wall of red bricks, coins from the museum,
the night sky full of galaxies, gravel on the road: one photo, two photos, many photographs of it
"""
TEXTS = [
    "",
    "a photo of a cat",
    "a photo of a dog.",
    "An Astronaut   in\nspace!",
    "\N{ROCKET} lift-off \N{FAMILY}",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} — naïve",
    "日本語のテキスト",
    "coffee " * 10,
    "the night sky full of galaxies " * 40,
]


class TextTower(torch.nn.Module):
    """Token ids, and maybe their mask, to a vector of length 1."""

    def __init__(self, model: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed one text."""
        vectors = self.model(input_ids=ids, attention_mask=mask).text_embeds
        normalized: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
        return normalized


def build_model(vocab: dict[str, int]) -> CLIPTextModelWithProjection:
    """Return a random text tower over a vocabulary."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=DIMENSIONS,
        initializer_factor=10.0,
        bos_token_id=vocab[START],
        eos_token_id=vocab[END],
        pad_token_id=vocab[END],
    )
    model = CLIPTextModelWithProjection(config)
    model.train(mode=False)
    return model


class ImageTower(torch.nn.Module):
    """An image's coarse colours to a vector of length 1, in the texts' space by name alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(3 * 7 * 7, DIMENSIONS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed one image `(1, 3, 224, 224)`."""
        vectors = self.linear(torch.nn.functional.avg_pool2d(pixels, 32).flatten(1) - 0.5)
        normalized: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
        return normalized


def metadata(modality: Modality, tokenizer_sha256: str | None = None) -> ProgramMetadata:
    """Return what both towers say of themselves."""
    return ProgramMetadata(
        name=f"tiny-{modality}",
        modality=modality,
        embedding_dim=DIMENSIONS,
        normalized=True,
        preprocessing=CLIP_PREPROCESSING,
        context_length=CONTEXT_LENGTH if modality == "text" else None,
        tokenizer_sha256=tokenizer_sha256,
        weights_sha256=hashlib.sha256(b"tiny").hexdigest(),
        logit_scale=LOGIT_SCALE,
        recipe="test",
    )


def write_programs(tower: TextTower, tokenizer_sha256: str) -> None:
    """Write the hook's text program, one of a single length, and their image tower."""
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    tokens = torch.export.Dim("tokens", min=2, max=CONTEXT_LENGTH)
    hook = lower(tower, (ids, torch.ones_like(ids)), dynamic_shapes=({1: tokens}, {1: tokens}))
    hook.write(FIXTURES / "hook_text.pte")
    padded = torch.zeros(1, CONTEXT_LENGTH, dtype=torch.int64)
    described = lower(tower, (padded,), metadata=metadata("text", tokenizer_sha256))
    described.write(FIXTURES / "padded_text.pte")
    image = lower(ImageTower(), (torch.zeros(1, 3, 224, 224),), metadata=metadata("image"))
    image.write(FIXTURES / "image.pte")


def write_expected(tower: TextTower, tokenizer: Tokenizer) -> None:
    """Write texts and the vectors that the eager model gives for them."""
    vectors = {}
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        ids = [*ids[: CONTEXT_LENGTH - 1], ids[-1]] if len(ids) > CONTEXT_LENGTH else ids
        with torch.no_grad():
            vectors[text] = tower(torch.tensor([ids]))[0].tolist()
    content = json.dumps(vectors, ensure_ascii=False, indent=0)
    (FIXTURES / "expected.json").write_text(content)


def main() -> None:
    """Write all fixtures."""
    FIXTURES.mkdir(exist_ok=True)
    words = CORPUS.replace(",", " ,").replace(".", " .").split()
    merges = train(words, MERGES)
    content = json.dumps(tokenizer_json(merges), ensure_ascii=False, indent=0).encode()
    (FIXTURES / "tokenizer.json").write_bytes(content)
    tower = TextTower(build_model(vocabulary(merges)))
    write_programs(tower, hashlib.sha256(content).hexdigest())
    write_expected(tower, Tokenizer.from_buffer(content))


if __name__ == "__main__":
    main()
