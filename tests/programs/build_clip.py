"""Rebuild the tiny CLIP programs that stand in for real ones where torch is not installed.

python -m tests.programs.build_clip

`tiny_clip_image.pte` and `tiny_clip_text.pte` are both towers of one checkpoint with random
weights, exported as `aioembed export` does: 32 x 32 pixels in patches of 8 with CLIP's own
preprocessing, and at most 77 of 600 tokens (598 starts a text, 599 ends it); 16 values.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, get_args

from aioembed.export import ExportOptions, export_model
from tests.export.checkpoints import save_tiny

_Tower = Literal["image", "text"]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = save_tiny(Path(temporary) / "tiny-clip")
        for tower in get_args(_Tower):
            out = Path(__file__).with_name(f"tiny_clip_{tower}.pte")
            print(export_model(checkpoint, out, ExportOptions(tower=tower, norm="bn")))


if __name__ == "__main__":
    main()
