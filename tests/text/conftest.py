"""The tiny text models, and the merges that were published with CLIP."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aioembed import CLIP_PREPROCESSING, ModelSpec

from .clip_bpe import Merge, read_merges, tokenizer_json

collect_ignore_glob = [] if importlib.util.find_spec("tokenizers") else ["test_*.py"]

FIXTURES = Path(__file__).with_name("fixtures")
_MERGES = Path(__file__).resolve().parents[3] / "shared" / "clip" / "bpe_simple_vocab_16e6.txt.gz"

Vectors = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def tokenizer_file() -> Path:
    """A small `tokenizer.json` of CLIP's format."""
    return FIXTURES / "tokenizer.json"


@pytest.fixture(scope="session")
def small_merges(tokenizer_file: Path) -> list[Merge]:
    """The merges of the small tokenizer."""
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    pairs = (merge.split() for merge in content["model"]["merges"])
    return [(left, right) for left, right in pairs]


@pytest.fixture(scope="session")
def clip_merges() -> list[Merge]:
    """CLIP's own merges, where the checkout has them beside it."""
    if not _MERGES.is_file():
        pytest.skip("CLIP's merges are not beside the checkout")
    return read_merges(_MERGES)


@pytest.fixture(scope="session")
def clip_tokenizer_file(clip_merges: list[Merge], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's own `tokenizer.json`."""
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(clip_merges)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hook_text() -> ModelSpec:
    """A text program as the React Native hook has it: ids and mask, nothing said inside."""
    return ModelSpec(
        name="hook-text",
        source=str(FIXTURES / "hook_text.pte"),
        modality="text",
        preprocessing=CLIP_PREPROCESSING,
        tokenizer_source=str(FIXTURES / "tokenizer.json"),
        checkpoint="tiny",
    )


@pytest.fixture(scope="session")
def padded_text() -> Path:
    """A text program of exactly 77 ids that describes itself; its tokenizer lies beside it."""
    return FIXTURES / "padded_text.pte"


@pytest.fixture(scope="session")
def image_program() -> Path:
    """An image program of the same space as `padded_text`."""
    return FIXTURES / "image.pte"


@pytest.fixture(scope="session")
def expected() -> Vectors:
    """The vectors that the eager model of transformers gives for some texts."""
    content = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
    return {text: np.array(values, np.float32) for text, values in content.items()}
