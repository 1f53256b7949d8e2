"""Models of full size, from photographs and texts to vectors, against transformers end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytestmark = pytest.mark.full_size

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "export_parity.py"
_WEIGHTS, _PRECISIONS = ("plain", "heavy-tailed"), ("fp32", "int8")
_CLIP = product(["clip-b32"], _WEIGHTS, ("image", "text"), _PRECISIONS, ("ln", "bn"))
_IMAGES = [
    "openclip-b32-256",
    "tinyclip-39m",
    "siglip2-b16-224",
    "dinov2-s14",
    "dinov2-s14-registers",
]
_TEXTS = ["tinyclip-39m", "siglip2-b16-224"]
_CASES = [
    *_CLIP,
    *product(_IMAGES, _WEIGHTS, ["image"], _PRECISIONS, ["auto"]),
    *product(_TEXTS, _WEIGHTS, ["text"], _PRECISIONS, ["auto"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints are kept from one test to the next."""
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    return tmp_path_factory.mktemp("parity")


@pytest.mark.parametrize("case", _CASES, ids=" ".join)
def test_vectors_are_those_of_transformers(
    folder: Path, photographs: Path, case: tuple[str, ...]
) -> None:
    """The reference goes through transformers' processor or tokenizer, and its model."""
    kept = ["--folder", str(folder), "--photographs", str(photographs)]
    done = subprocess.run(
        [sys.executable, _SCRIPT, "--json", *kept, "--only", *case],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    row = json.loads(done.stdout)
    model, _, tower, precision, _ = case
    print(row)
    assert row["inputs"] >= 8
    assert row["cosine"] >= (0.99999 if precision == "fp32" else 0.999)
    assert row["export_gib"] < 6
    if model == "clip-b32":
        megabytes = {"image": (355, 90), "text": (257, 85)}[tower]
        assert row["megabytes"] < megabytes[precision == "int8"]
