"""Programs of CLIP's size with seeded random weights, made once and kept in a folder.

    python benchmarks/programs.py [NAME...]

The folder is `AIOEMBED_BENCH_DIR`, or one in the system's temporary folder. Making a program
needs the [export] extra; using one that is there does not. The weights are random, so the
vectors mean nothing, but time and memory do not depend on the weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["INPUT_SHAPES", "image_tower", "program"]

_SEED = 20230131
INPUT_SHAPES: dict[str, tuple[int, ...]] = {"clip_image_fp32": (1, 3, 224, 224)}
"""Shape of each program's one input, float32."""


def folder() -> Path:
    """Where the programs are kept."""
    chosen = os.environ.get("AIOEMBED_BENCH_DIR")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "aioembed-bench"


def program(name: str) -> Path:
    """Return the path of a program, made in a child process if it is not there yet."""
    path = folder() / f"{name}.pte"
    if not path.exists():
        subprocess.run([sys.executable, __file__, name], check=True)
    return path


def _save(name: str, content: bytes) -> Path:
    path = folder() / f"{name}.pte"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def image_tower() -> torch.nn.Module:
    """Return CLIP ViT-B/32's image tower of transformers, its vectors brought to length 1."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    class ImageTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = CLIPVisionConfig(hidden_size=768, patch_size=32, projection_dim=512)
            self.tower = CLIPVisionModelWithProjection(config)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            embeds: torch.Tensor = self.tower(pixel_values=pixel_values).image_embeds
            length: torch.Tensor = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
            return embeds / length

    torch.manual_seed(_SEED)
    return ImageTower().eval()


def _clip_image_fp32() -> bytes:
    """CLIP ViT-B/32's image tower as transformers writes it, lowered plainly to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    inputs = (torch.rand(INPUT_SHAPES["clip_image_fp32"]),)
    exported = torch.export.export(image_tower(), inputs)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def _clip_fast(precision: Literal["fp32", "int8"]) -> bytes:
    """CLIP ViT-B/32's image tower as `aioembed export` writes it."""
    from aioembed.export import ExportOptions, export_model

    with tempfile.TemporaryDirectory() as scratch:
        _save_checkpoint(Path(scratch))
        out = Path(scratch) / "program.pte"
        export_model(
            scratch, out, ExportOptions(precision=precision, norm="ln", preprocessing="clip")
        )
        return out.read_bytes()


def _save_checkpoint(to: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(_SEED)
    CLIPModel(CLIPConfig(vision_config={"patch_size": 32})).save_pretrained(to)


_MAKERS: dict[str, Callable[[], bytes]] = {
    "clip_image_fp32": _clip_image_fp32,
    "clip_fast_fp32": lambda: _clip_fast("fp32"),
    "clip_fast_int8": lambda: _clip_fast("int8"),
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or _MAKERS:
        made = _save(wanted, _MAKERS[wanted]())
        print(f"{made}: {made.stat().st_size / 1e6:.0f} MB")
