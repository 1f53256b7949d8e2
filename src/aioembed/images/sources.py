"""From whatever names or holds an image to pixels, or to a program's input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from numpy.typing import NDArray
from PIL import Image

from .._tasks import run_in_thread
from ..errors import FileReadFailed, ImageDecodeError, InvalidUserInput, shorten
from ..models import Preprocessing
from ..statistics import Stopwatch
from .color import to_rgb
from .decode import Stored, check_size, open_encoded
from .files import read_file
from .geometry import Turn
from .layout import turn_upright
from .policy import SourcePolicy
from .preprocess import check_array, program_input, smallest_enough
from .resample import RgbImage
from .uri import decode_data_uri, kind_of, path_of_file_uri, raw_base64

if TYPE_CHECKING:
    import httpx

__all__ = ["ImageInput", "load_image", "obtain", "prepare", "read_encoded"]

ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
)
"""What can be embedded: an `https:`, `http:`, `file:` or `data:` URI, a path, raw base64, encoded
bytes, a Pillow image, or uint8 pixels `(height, width, 3)` in the order red, green, blue."""

_Result = TypeVar("_Result")
_Enough = Callable[[tuple[int, int], int], tuple[int, int] | None]

_ORIENTATION_TAG = 0x0112
_own_limiter: RunVar[CapacityLimiter] = RunVar("aioembed_images_limiter")


async def load_image(
    source: ImageInput,
    *,
    policy: SourcePolicy,
    http_client: httpx.AsyncClient | None = None,
    limiter: CapacityLimiter | None = None,
) -> RgbImage:
    """Fetch or read an image and decode it, upright.

    Args:
        source: The image, or what names it.
        policy: Which sources are allowed, and the limits.
        http_client: Asked for http and https URLs where the policy allows private addresses;
            otherwise connections are made by the policy's own transport.
        limiter: Of worker threads; by default one per CPU, apart from all other work.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format, or of pixels, that are not supported.
        ImageDecodeError: It is no image, or a damaged one.
        InvalidUserInput: It is nothing of the kind, or an array of another shape or dtype.
    """

    def work(obtained: ImageInput) -> RgbImage:
        stored = _open(obtained, policy, lambda _size, _orientation: None)
        return turn_upright(np.asarray(stored.pixels), Turn.of(stored.orientation))

    return await _in_thread(source, work, policy, http_client, limiter)


async def read_encoded(
    source: str | bytes,
    *,
    policy: SourcePolicy,
    http_client: httpx.AsyncClient | None = None,
    limiter: CapacityLimiter | None = None,
) -> bytes:
    """Return an image file's bytes once its header has passed the policy; no pixel is decoded.

    Args:
        source: The bytes, or what names them.
        policy: Which sources are allowed, and the limits.
        http_client: As in `load_image`.
        limiter: As in `load_image`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format that is not supported.
        ImageDecodeError: It is no image, or its header is damaged.
    """
    obtained = await obtain(source, policy, http_client=http_client)

    def work() -> bytes:
        data = _bytes_of(obtained, policy)
        open_encoded(data, policy)
        return data

    return await run_in_thread(work, limiter=limiter or _default_limiter())


async def prepare(
    source: ImageInput,
    preprocessing: Preprocessing,
    *,
    policy: SourcePolicy,
    http_client: httpx.AsyncClient | None = None,
    limiter: CapacityLimiter | None = None,
    stopwatch: Stopwatch | None = None,
) -> NDArray[np.float32]:
    """Fetch or read an image and turn it into a program's input, in one worker-thread call.

    Args:
        source: The image, or what names it.
        preprocessing: What the program wants.
        policy: Which sources are allowed, and the limits.
        http_client: As in `load_image`.
        limiter: As in `load_image`.
        stopwatch: Told how long decoding and preprocessing take.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format, or of pixels, that are not supported.
        ImageDecodeError: It is no image, or a damaged one.
        InvalidUserInput: It is nothing of the kind, or an array of another shape or dtype.
    """
    timed = stopwatch or Stopwatch()

    def work(obtained: ImageInput) -> NDArray[np.float32]:
        with timed.measure("decode"):
            stored = _open(obtained, policy, smallest_enough(preprocessing))
        with timed.measure("preprocess"):
            return program_input(stored, preprocessing)

    return await _in_thread(source, work, policy, http_client, limiter)


async def obtain(
    source: ImageInput, policy: SourcePolicy, *, http_client: httpx.AsyncClient | None = None
) -> ImageInput:
    """Return the bytes of an image that a URL names, and any other source as it is.

    Args:
        source: The image, or what names it.
        policy: Which sources are allowed, and the limits.
        http_client: As in `load_image`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        ImageTooLarge: It has more bytes than the policy allows.
    """
    if isinstance(source, str) and kind_of(source, policy) == "http":
        from .fetching import fetch  # noqa: PLC0415  # brings httpx, which few need

        return await fetch(source, policy, http_client=http_client)
    return source


async def _in_thread(
    source: ImageInput,
    work: Callable[[ImageInput], _Result],
    policy: SourcePolicy,
    http_client: httpx.AsyncClient | None,
    limiter: CapacityLimiter | None,
) -> _Result:
    obtained = await obtain(source, policy, http_client=http_client)
    return await run_in_thread(lambda: work(obtained), limiter=limiter or _default_limiter())


def _default_limiter() -> CapacityLimiter:
    limiter = _own_limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(os.cpu_count() or 1)
        _own_limiter.set(limiter)
    return limiter


def _open(source: ImageInput, policy: SourcePolicy, enough: _Enough) -> Stored:
    if isinstance(source, np.ndarray):
        return _from_array(source, policy)
    if isinstance(source, Image.Image):
        return _from_pillow(source, policy)
    return open_encoded(_bytes_of(source, policy), policy).load(enough)


def _bytes_of(source: object, policy: SourcePolicy) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str):
        return _bytes_of_string(source, policy)
    if isinstance(source, os.PathLike):
        return read_file(Path(os.fsdecode(source)), policy)
    raise InvalidUserInput(
        f"a {type(source).__name__} is no image: pass a URI, a path, bytes, a PIL image or a uint8 "
        "array (height, width, 3)"
    )


def _bytes_of_string(source: str, policy: SourcePolicy) -> bytes:
    kind = kind_of(source, policy)
    if kind == "data":
        return decode_data_uri(source, policy)
    if kind == "file":
        return read_file(path_of_file_uri(source), policy)
    inline = raw_base64(source, policy) if "data" in policy.schemes else None
    if inline is not None:
        return inline
    try:
        return read_file(Path(source), policy)
    except FileReadFailed as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise FileReadFailed(
                f"{shorten(source)}: no such file, and neither a URI nor an image in base64"
            ) from exc.__cause__
        raise


def _from_array(array: NDArray[np.uint8], policy: SourcePolicy) -> Stored:
    check_array(array)
    size = (array.shape[1], array.shape[0])
    check_size(size, policy)
    return Stored(array, size)


def _from_pillow(image: Image.Image, policy: SourcePolicy) -> Stored:
    check_size(image.size, policy)
    try:
        pixels = to_rgb(image)
        pixels.load()
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as exc:
        raise ImageDecodeError(f"the PIL image cannot be read: {exc}") from exc
    return Stored(pixels, pixels.size, orientation if orientation in range(1, 9) else 1)
