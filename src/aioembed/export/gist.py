"""The GIST scene descriptor; `python -m aioembed.export.gist` rebuilds the shipped program.

GIST (A. Oliva, A. Torralba: "Modeling the shape of the scene: a holistic representation of the
spatial envelope", International Journal of Computer Vision 42, 2001) describes a picture by how
much energy Gabor filters of 4 scales and 8 orientations find in each cell of a 4 x 4 grid: 512
values. It finds near-duplicates and scenes of a similar layout. It is not semantic: two
photographs of cats are no closer than any other two.

Three things differ from the paper. The coarser scales are one set of filters over an average-pooled
pyramid, not wider filters. The fine scales are filtered at every second or fourth pixel, since only
the mean energy of a cell is wanted. And the energies, which are all positive, so that any two
pictures would look alike, are standardised within each scale before the vector is brought to
length 1.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aioembed.errors import MissingExtra
from aioembed.export.lowering import Lowered, lower
from aioembed.models import Preprocessing, ProgramMetadata
from aioembed.runtime import Program

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as exc:
    raise MissingExtra("torch", "export") from exc

__all__ = ["GIST_PREPROCESSING", "Gist", "build", "gabor_filters", "largest_difference", "main"]

RECIPE = "gist-2"
SCALES = 4
ORIENTATIONS = 8
GRID = 4
EMBEDDING_DIM = SCALES * ORIENTATIONS * GRID * GRID

GIST_PREPROCESSING = Preprocessing(
    height=96, width=96, resize="stretch", interpolation="bilinear", antialias=True
)
"""The whole picture, squeezed to 96 x 96 with an antialiased bilinear kernel, values / 255."""

MAX_BATCH = 8
"""Most pictures per call. From 16 on, torch's export takes a convolution's batch for fixed."""

_SIDE = GIST_PREPROCESSING.height
_KERNEL = 13
_STRIDES = (
    4,
    4,
    2,
    1,
)  # by scale; a response's magnitude changes little over a sigma of 3.6 pixels
_FREQUENCY = 0.14
_BLUR_SIGMA = _SIDE / 8
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
_CONTRAST_FLOOR = 0.2
_MAGNITUDE_FLOOR = 1e-3  # above the rounding noise of a picture of one colour
_VARIANCE_FLOOR = 1e-4
_FLAT_OFFSET = 1e-2

TOLERANCE = 1e-6
"""Largest difference of any value between two builds: float32 rounding, summed in another order."""

_Floats = npt.NDArray[np.float64]


def gabor_filters(size: int, orientations: int, frequency: float) -> _Floats:
    """Return quadrature pairs of Gabor filters, without response to a constant.

    Args:
        size: Side of a filter in pixels, odd.
        orientations: How many, evenly over half a turn.
        frequency: Of the carrier wave, in cycles per pixel.

    Returns:
        Shape `(2 * orientations, 1, size, size)`: all cosines, then all sines.
    """
    axis = np.arange(size, dtype=np.float64) - size // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    sigma = 0.5 / frequency
    envelope = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    envelope /= envelope.sum()
    angles = np.pi * np.arange(orientations) / orientations
    along = x * np.cos(angles)[:, None, None] + y * np.sin(angles)[:, None, None]
    phase = 2 * np.pi * frequency * along
    waves = 2 * envelope * np.concatenate([np.cos(phase), np.sin(phase)])
    waves -= envelope * waves.sum(axis=(1, 2), keepdims=True)
    return np.expand_dims(waves, 1)


def _blur_matrix(side: int, sigma: float) -> _Floats:
    """Return the symmetric matrix that blurs one axis by a Gaussian, mirrored at both ends."""
    offsets = np.arange(-2 * side, 2 * side + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    positions = (np.arange(side)[:, None] + offsets) % (2 * side)
    mirrored = np.minimum(positions, 2 * side - 1 - positions)
    matrix = np.zeros((side, side))
    for row, columns in zip(matrix, mirrored, strict=True):
        np.add.at(row, columns, weights)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


class Gist(nn.Module):
    """Pictures `(n, 3, 96, 96)`, float32 RGB in 0..1, to descriptors `(n, 512)` of length 1.

    The values are ordered by scale (fine to coarse), orientation, row and column of the grid.
    A picture of one colour has no energy to describe: all its values are equal, which is as good
    as orthogonal to every other picture.
    """

    def __init__(self) -> None:
        super().__init__()
        filters = gabor_filters(_KERNEL, ORIENTATIONS, _FREQUENCY)
        pairs = np.tile(np.eye(ORIENTATIONS), (1, 2))[:, :, None, None]
        self._constant("luminance", 255 * np.reshape(_LUMINANCE, (1, 3, 1, 1)))
        self._constant("blur", _blur_matrix(_SIDE, _BLUR_SIGMA))
        self._constant("filters", filters)
        self._constant("pairs", pairs)
        self._constant("floor", np.full(ORIENTATIONS, _MAGNITUDE_FLOOR**2))
        self._constant("black", np.ones(1))

    luminance: Tensor
    blur: Tensor
    filters: Tensor
    pairs: Tensor
    floor: Tensor
    black: Tensor

    def _constant(self, name: str, values: _Floats) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    @property
    def fingerprint(self) -> str:
        """Sha256 of the constants and of the recipe that uses them."""
        digest = hashlib.sha256(RECIPE.encode())
        for name, tensor in sorted(self.named_buffers()):
            digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def forward(self, pixels: Tensor) -> Tensor:
        """Describe each picture; shapes and ranges as the class says."""
        level = self._normalize_contrast(functional.conv2d(pixels, self.luminance, self.black))
        energies = []
        for scale, stride in enumerate(_STRIDES):
            if scale:
                level = functional.avg_pool2d(level, 2)
            energies.append(self._energy(level, stride))
        return self._standardize(torch.cat(energies, dim=1))

    def _normalize_contrast(self, luminance: Tensor) -> Tensor:
        """Take the local mean from the logarithm, then divide by the local deviation."""
        light = torch.log(luminance)
        detail = light - self._blurred(light)
        return detail / (torch.sqrt(self._blurred(detail * detail)) + _CONTRAST_FLOOR)

    def _blurred(self, image: Tensor) -> Tensor:
        columns = functional.linear(image, self.blur).permute(0, 1, 3, 2)
        return functional.linear(columns, self.blur).permute(0, 1, 3, 2)

    def _energy(self, level: Tensor, stride: int) -> Tensor:
        """Return the mean magnitude of each orientation's response in each cell of the grid."""
        padding = (_KERNEL + 1 - stride) // 2  # as many samples as strides, nearly centred
        waves = functional.conv2d(level, self.filters, stride=stride, padding=padding)
        magnitude = torch.sqrt(functional.conv2d(waves * waves, self.pairs, self.floor))
        return functional.avg_pool2d(magnitude, level.shape[-1] // stride // GRID)

    def _standardize(self, energies: Tensor) -> Tensor:
        """Centre each scale and divide it by its deviation, then bring the vector to length 1."""
        scales = energies.view(-1, SCALES, ORIENTATIONS, GRID * GRID)
        centred = scales - scales.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True)
        values = centred / torch.sqrt(variance + _VARIANCE_FLOOR) + _FLAT_OFFSET
        values = values.view(-1, EMBEDDING_DIM // 16, 4, 4)
        squares = (values * values).mean((2, 3), keepdim=True).view(-1, 1, 4, EMBEDDING_DIM // 64)
        length = torch.sqrt(squares.mean((2, 3), keepdim=True) * EMBEDDING_DIM)
        return (values / length).view(-1, EMBEDDING_DIM)


def _metadata(module: Gist) -> ProgramMetadata:
    """Return what the program says of itself."""
    return ProgramMetadata(
        name="gist-512",
        modality="image",
        embedding_dim=EMBEDDING_DIM,
        normalized=True,
        preprocessing=GIST_PREPROCESSING,
        weights_sha256=module.fingerprint,
        recipe=RECIPE,
    )


def build() -> Lowered:
    """Lower the descriptor to a program; the same bytes each time.

    Raises:
        MissingExtra: executorch is not installed.
    """
    module = Gist()
    example = torch.zeros(2, *GIST_PREPROCESSING.input_shape[1:])  # 1 would be taken for fixed
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return lower(module, (example,), metadata=_metadata(module), dynamic_shapes=({0: batch},))


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild the shipped program, or check that it is what this module builds.

    Args:
        arguments: `--out PATH` writes elsewhere; `--check` compares PATH and writes nothing. The
            process's own where None.

    Returns:
        The exit status: 1 where `--check` found a difference.
    """
    parser = argparse.ArgumentParser(prog="python -m aioembed.export.gist", description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write or check, if not the shipped one")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if different")
    options = parser.parse_args(arguments)
    with as_file(files("aioembed.models") / "gist_512.pte") as shipped:
        path = options.out or shipped
    built = build()
    content = b"".join(built.parts)
    if options.check:
        return _check(path, content)
    built.write(path)
    print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")  # noqa: T201
    return 0


def largest_difference(path: Path, pictures: npt.NDArray[np.float32]) -> float:
    """Return the largest difference between a program's values and this module's, on `pictures`.

    Args:
        path: Of the program.
        pictures: Shape `(n, 3, 96, 96)`, float32 in 0..1.
    """
    module = Gist()
    program = Program.load(path)
    try:
        with torch.no_grad():
            return max(
                float(np.abs(program.run(one)[0] - module(torch.from_numpy(one)).numpy()).max())
                for one in pictures[:, None]
            )
    finally:
        program.close()


def _check(path: Path, expected: bytes) -> int:
    """Compare the file with what was built: byte for byte, else by its outputs."""
    if path.read_bytes() == expected:
        print(f"{path}: the same bytes")  # noqa: T201
        return 0
    noise = np.random.default_rng(0).random((8, *GIST_PREPROCESSING.input_shape[1:]), np.float32)
    difference = largest_difference(path, noise)
    print(f"{path}: other bytes, outputs differ by up to {difference:.1e}")  # noqa: T201
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
