"""Small programs that stand in for real ones, and what is known of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from aioembed import ModelSpec

TINY_IMAGE_PROGRAM = Path(__file__).with_name("tiny_image.pte")

TINY_IMAGE = ModelSpec(
    name="tiny-image",
    source=str(TINY_IMAGE_PROGRAM),
    modality="image",
    embedding_dim=512,
    size_bytes=TINY_IMAGE_PROGRAM.stat().st_size,
    sha256=hashlib.sha256(TINY_IMAGE_PROGRAM.read_bytes()).hexdigest(),
)
"""Takes 32 x 32 pixels, up to 8 pictures a call, and loads and runs in no time."""
