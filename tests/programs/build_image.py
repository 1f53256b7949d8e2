"""Rebuild the tiny image program that most tests embed with; needs the extra `export`.

python -m tests.programs.build_image

`tiny_image.pte` takes up to 8 pictures of 32 x 32 pixels and projects each of 4 x 4 cells onto
32 random directions: 512 values, so that pictures that look alike have vectors that are alike.
"""

from __future__ import annotations

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


def main() -> None:
    folder = Path(__file__).parent
    for channels_last, name in ((False, "plain_nchw.pte"), (True, "plain_nhwc.pte")):
        pixels = torch.zeros((1, 32, 32, 3) if channels_last else (1, 3, 32, 32))
        lower(_Plain(channels_last=channels_last), (pixels,)).write(folder / name)
    lower(_Constant(), (torch.zeros(1, 3, 32, 32),)).write(folder / "constant.pte")
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
