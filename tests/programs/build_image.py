"""Rebuild the tiny image program that most tests embed with; needs the extra `export`.

python -m tests.programs.build_image

`tiny_image.pte` takes up to 8 pictures of 32 x 32 pixels and projects each of 4 x 4 cells onto
32 random directions: 512 values, so that pictures that look alike have vectors that are alike.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from aioembed.export.lowering import lower
from aioembed.models import Preprocessing, ProgramMetadata


class _Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(3, 32, 8, stride=8)
        directions = torch.randn(self.cells.weight.shape, generator=torch.manual_seed(0))
        self.cells.weight = nn.Parameter(directions)
        self.cells.bias = nn.Parameter(torch.full((32,), 0.01))

    def forward(self, pixels: Tensor) -> Tensor:
        values: Tensor = self.cells(pixels).view(-1, 512)
        return values * torch.rsqrt((values * values).sum(1, keepdim=True))


class _Plain(nn.Module):
    """As a program from elsewhere: no metadata, a pooling's shape, channels first or last."""

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.cells = nn.Conv2d(3, 16, 8, stride=8, bias=False)
        directions = torch.randn(self.cells.weight.shape, generator=torch.manual_seed(0))
        self.cells.weight = nn.Parameter(directions)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.channels_last:
            pixels = pixels.permute(0, 3, 1, 2)
        return torch.relu(self.cells(pixels)).mean((2, 3), keepdim=True)


class _Constant(nn.Module):
    """Gives every picture the same vector."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) * 0 + 1


class _Several(nn.Module):
    """Gives what it computes on the way, then two vectors, either of which may be the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = _Plain(channels_last=False).cells

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells = torch.relu(self.cells(pixels))
        pooled = cells.mean((2, 3))
        return cells, pooled, pooled * pooled


class _OneVector(nn.Module):
    """Gives what it computes on the way, then the one output that can be an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.several = _Several()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells, pooled, _ = self.several(pixels)
        return cells, pooled


class _ConstantText(nn.Module):
    """Gives every text the same vector."""

    def forward(self, ids: Tensor) -> Tensor:
        return (ids * 0 + 1).float()


def _schema(*outputs: tuple[int, ...]) -> str:
    """Return what React Native ExecuTorch 0.10 reads, for an image program with these outputs."""

    def tensor(*shape: int) -> dict[str, object]:
        axes = [{"kind": "constant", "value": size} for size in shape]
        return {"kind": "Tensor", "dtype": "float32", "shape": axes}

    method = {"inputs": [tensor(1, 3, 32, 32)], "outputs": [tensor(*one) for one in outputs]}
    return json.dumps({"forward": {**method, "runtimeConstraints": []}})


def main() -> None:
    folder = Path(__file__).parent
    for channels_last, name in ((False, "plain_nchw.pte"), (True, "plain_nhwc.pte")):
        pixels = torch.zeros((1, 32, 32, 3) if channels_last else (1, 3, 32, 32))
        lower(_Plain(channels_last=channels_last), (pixels,)).write(folder / name)
    image = (torch.zeros(1, 3, 32, 32),)
    strided = image[0].to(memory_format=torch.channels_last)
    lower(_Plain(channels_last=False), (strided,)).write(folder / "plain_strided.pte")
    lower(_Constant(), image).write(folder / "constant.pte")
    texts = (torch.zeros(1, 8, dtype=torch.int64),)
    lower(_ConstantText(), texts).write(folder / "constant_text.pte")
    schemas = {"several": _schema((1, 16, 4, 4), (1, 16), (1, 16)), "wrong_schema": _schema((1, 8))}
    for name, schema in schemas.items():
        said = {"get_model_schema": schema}
        lower(_Several(), image, constant_methods=said).write(folder / f"{name}.pte")
    lower(_OneVector(), image).write(folder / "one_vector.pte")
    metadata = ProgramMetadata(
        name="tiny-image",
        modality="image",
        embedding_dim=512,
        normalized=True,
        preprocessing=Preprocessing(
            height=32,
            width=32,
            resize="stretch",
            interpolation="bilinear",
            antialias=True,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        weights_sha256="0" * 64,
        recipe="tiny",
    )
    batch = torch.export.Dim("batch", min=1, max=8)
    example = (torch.zeros(2, 3, 32, 32),)
    built = lower(_Cells().eval(), example, metadata=metadata, dynamic_shapes=({0: batch},))
    built.write(Path(__file__).with_name("tiny_image.pte"))


if __name__ == "__main__":
    main()
