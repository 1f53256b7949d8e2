"""What decoding takes, per format and mode: no more than the policy's estimate, in a child."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = {
    "JPEG": "rgb, 'JPEG', {'quality': 60}",
    "JPEG progressive": "rgb, 'JPEG', {'quality': 60, 'progressive': True}",
    "JPEG progressive 4:4:4": "rgb, 'JPEG', {'progressive': True, 'subsampling': 0}",
    "JPEG CMYK": "rgb.convert('CMYK'), 'JPEG', {'quality': 60}",
    "JPEG CMYK progressive": "rgb.convert('CMYK'), 'JPEG', {'progressive': True}",
    "JPEG grey": "rgb.convert('L'), 'JPEG', {}",
    "PNG": "rgb, 'PNG', {'compress_level': 1}",
    "PNG interlaced alpha": "rgb.convert('RGBA'), 'PNG', {'compress_level': 1}",
    "PNG palette": "rgb.quantize(64), 'PNG', {'compress_level': 1}",
    "PNG 16 bits": "Image.fromarray(np.zeros((3000, 4000), np.uint16)), 'PNG', {}",
    "WEBP": "rgb, 'WEBP', {'quality': 10, 'method': 0}",
    "WEBP lossless": "rgb, 'WEBP', {'lossless': True, 'method': 0, 'quality': 0}",
    "WEBP alpha": "rgb.convert('RGBA'), 'WEBP', {'quality': 10, 'method': 0}",
    "AVIF": "rgb, 'AVIF', {'quality': 20, 'speed': 10}",
    "AVIF 4:4:4": "rgb, 'AVIF', {'quality': 20, 'speed': 10, 'subsampling': '4:4:4'}",
    "GIF": "rgb.quantize(64), 'GIF', {}",
    "BMP": "rgb, 'BMP', {}",
    "TIFF": "rgb, 'TIFF', {}",
    "TIFF LZW": "rgb, 'TIFF', {'compression': 'tiff_lzw'}",
    "TIFF JPEG": "rgb, 'TIFF', {'compression': 'jpeg'}",
    "TIFF CMYK": "rgb.convert('CMYK'), 'TIFF', {}",
    "TIFF float": "rgb.convert('F'), 'TIFF', {}",
    "TIFF Lab": "Image.new('LAB', (4000, 3000), (90, 9, 9)), 'TIFF', {}",
}
OF_TRUSTED_FILES = {
    "HEIF": "rgb, 'HEIF', {'quality': 30}",
    "HEIF alpha": "rgb.convert('RGBA'), 'HEIF', {'quality': 30}",
    "HEIF 4:4:4": "rgb, 'HEIF', {'quality': 30, 'chroma': 444}",
    "JPEG 2000": "rgb, 'JPEG2000', {'quality_mode': 'rates', 'quality_layers': [80]}",
    "JPEG 2000 alpha": "rgb.convert('RGBA'), 'JPEG2000', {}",
    "PPM": "rgb, 'PPM', {}",
    "PBM": "rgb.convert('1'), 'PPM', {}",
    "PFM": "rgb.convert('F'), 'PPM', {}",
    "PGM 16 bits": "Image.fromarray(np.zeros((3000, 4000), np.uint16)), 'PPM', {}",
    "TGA": "rgb, 'TGA', {'compression': 'tga_rle'}",
    "PCX": "rgb, 'PCX', {}",
    "QOI": "rgb, 'QOI', {}",
    "DIB": "rgb, 'DIB', {}",
}

CHILD = """
import io, re, sys
import numpy as np
from PIL import Image, ImageCms
from aioembed.errors import ImageTooLarge
from aioembed.images import IMAGE_FORMATS, SourcePolicy
from aioembed.images.decode import decode, open_encoded
from aioembed.images.preprocess import program_input
from aioembed.models import CLIP_PREPROCESSING, RNE_PREPROCESSING

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1000

def encode(image, format, options):
    file = io.BytesIO()
    if format == "HEIF":
        import pillow_heif
        pillow_heif.from_pillow(image).save(file, **options)
    else:
        image.save(file, format, **options)
    return file.getvalue()

rgb = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
data = encode({case})
small = encode(*(lambda i, f, o: (i.crop((0, 0, 64, 64)), f, o))({case}))
del rgb
untrusted = SourcePolicy.untrusted().allow(max_bytes=100_000_000, formats=IMAGE_FORMATS)
wanted = (CLIP_PREPROCESSING, RNE_PREPROCESSING)
for preprocessing in wanted:
    program_input(open_encoded(small, untrusted).load(), preprocessing)
try:
    open_encoded(data, untrusted.allow(max_memory=1))
except ImageTooLarge as exc:
    estimate = float(re.search(r"about (\\d+) MB", str(exc))[1])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
for preprocessing in wanted:
    program_input(open_encoded(data, untrusted).load(), preprocessing)
print(estimate, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OF_TRUSTED_FILES)]
)
def test_decoding_takes_no_more_memory_than_was_estimated(case: str) -> None:
    if case.startswith("HEIF"):
        pytest.importorskip("pillow_heif")
    code = CHILD.replace("{case}", (CASES | OF_TRUSTED_FILES)[case])
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    estimate, taken = map(float, ended.stdout.split())
    print(f"{case}: {taken:.0f} MB taken, {estimate:.0f} estimated")
    assert taken <= estimate + 24  # the encoded bytes, and what the allocator keeps
