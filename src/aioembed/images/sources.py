"""From whatever names or holds an image to pixels, or to a program's input."""

from __future__ import annotations

import base64
import binascii
import inspect
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from numpy.typing import NDArray
from PIL import Image

from .._cpus import available_cpus
from .._tasks import run_in_thread
from ..errors import (
    FileReadFailed,
    ImageDecodeError,
    InvalidConfig,
    InvalidUserInput,
    SourceRefused,
    shorten,
)
from ..models import Preprocessing
from ..statistics import Stopwatch
from .decode import Stored, check_bytes, check_size, from_array, from_pillow, open_encoded, upright
from .headers import looks_like_image
from .policy import SourcePolicy
from .preprocess import program_input
from .resample import RgbImage

if TYPE_CHECKING:
    import httpx

    from .fetching import ImageClient

__all__ = [
    "ChannelOrder",
    "ImageFetcher",
    "ImageInput",
    "in_rgb",
    "load_image",
    "prepare",
    "read_encoded",
    "read_file",
]


class _BinaryFile(Protocol):
    def read(self, size: int, /) -> bytes: ...


ImageInput = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Image.Image
    | NDArray[np.uint8]
    | _BinaryFile
)
"""What can be embedded: an `https:`, `http:`, `file:` or `data:` URI, a path, raw base64, encoded
bytes, a binary file that is open, a Pillow image, or uint8 pixels: grey `(height, width)` or
`(height, width, 1)`, or `(height, width, 3 or 4)` in the order red, green, blue, alpha."""

ChannelOrder = Literal["RGB", "BGR", "RGBA", "BGRA"]
"""In which order an array's channels are; OpenCV's images are BGR."""

_Result = TypeVar("_Result")
_Kind = Literal["http", "data", "file", "bare"]

_own_limiter: RunVar[CapacityLimiter] = RunVar("aioembed_images_limiter")

_KINDS: dict[str, _Kind] = {"http": "http", "https": "http", "data": "data", "file": "file"}
# One letter before the colon is a drive, not a scheme.
_SCHEME = re.compile(r"[ \t\r\n]*([A-Za-z][A-Za-z0-9+.-]+):(//)?")
_BASE64_MARK = re.compile(r"; *base64[ \t\r\n]*$", re.IGNORECASE)
_HEAD_CHARACTERS = 64
_LONGEST_PATH = 4096
_BLANKS = re.compile(rb"[ \t\r\n\f]+")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NO_WAIT = os.O_NONBLOCK | os.O_CLOEXEC


class ImageFetcher:
    """Fetches the images that URLs name, over connections that are kept until it is closed.

    Making one does no I/O. After `aclose` it can be used again, on another event loop as well.

    Args:
        policy: Which sources are allowed, and the limits.
        http_client: Used in place of an own client, with its headers, where the policy allows
            private addresses; elsewhere it is left out, which is logged. It is not closed.
    """

    def __init__(
        self, policy: SourcePolicy, *, http_client: httpx.AsyncClient | None = None
    ) -> None:
        self._policy = policy
        self._http_client = http_client
        self._client: ImageClient | None = None

    async def obtain(self, source: ImageInput) -> ImageInput:
        """Return the bytes of an image that a URL names, and any other source as it is.

        Raises:
            SourceRefused: The policy refuses the source.
            ImageFetchFailed: The URL could not be fetched.
            ImageTooLarge: It has more bytes than the policy allows.
            InvalidUserInput: A URI of a scheme that no policy can allow.
            InvalidConfig: The environment's settings for connections cannot be used.
        """
        if not isinstance(source, str) or _kind_of(source, self._policy) != "http":
            return source
        if self._client is None:
            from .fetching import ImageClient  # noqa: PLC0415  # brings httpx, which few need

            self._client = ImageClient(self._policy, http_client=self._http_client)
        return await self._client.get(source.strip())

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


async def load_image(
    source: ImageInput,
    *,
    policy: SourcePolicy,
    format: ChannelOrder = "RGB",  # noqa: A002
    http_client: httpx.AsyncClient | None = None,
    limiter: CapacityLimiter | None = None,
) -> RgbImage:
    """Fetch or read an image and decode it, upright.

    Args:
        source: The image, or what names it.
        policy: Which sources are allowed, and the limits.
        format: The order of an array's channels.
        http_client: Fetches URLs where the policy allows private addresses, as for `ImageFetcher`.
        limiter: Of worker threads; by default one per CPU, apart from all other work.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format that is not supported or not allowed.
        ImageDecodeError: It is not an image, or a damaged one.
        InvalidUserInput: Nothing of the kind, or an array of another shape or dtype.
        InvalidConfig: `format` is none of its values, or goes with an array only.
    """

    def work(obtained: ImageInput) -> RgbImage:
        return upright(_open(obtained, policy))

    rgb = in_rgb(source, format)
    return await _in_thread(rgb, work, policy, http_client=http_client, limiter=limiter)


async def read_encoded(source: str | bytes, *, policy: SourcePolicy) -> bytes:
    """Return an image file's bytes once its header has passed the policy; no pixel is decoded.

    Args:
        source: The bytes, or what names them.
        policy: Which sources are allowed, and the limits.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format that is not supported or not allowed.
        ImageDecodeError: It is not an image, or its header is damaged.
    """

    def work(obtained: ImageInput) -> bytes:
        data = _bytes_of(obtained, policy)
        open_encoded(data, policy)
        return data

    return await _in_thread(source, work, policy)


async def prepare(
    source: ImageInput,
    preprocessing: Preprocessing,
    *,
    policy: SourcePolicy,
    limiter: CapacityLimiter | None = None,
    stopwatch: Stopwatch | None = None,
) -> NDArray[np.float32]:
    """Fetch or read an image and turn it into a program's input, in one worker-thread call.

    Args:
        source: The image, or what names it.
        preprocessing: What the program wants.
        policy: Which sources are allowed, and the limits.
        limiter: As in `load_image`.
        stopwatch: Measures how long decoding and preprocessing take.

    Returns:
        C-contiguous float32 of the shape `preprocessing.input_shape`.

    Raises:
        SourceRefused: The policy refuses the source.
        ImageFetchFailed: Its URL could not be fetched.
        FileReadFailed: Its file could not be read.
        ImageTooLarge: It goes beyond a limit.
        UnsupportedImageFormat: It is of a format that is not supported or not allowed.
        ImageDecodeError: It is not an image, or a damaged one.
        InvalidUserInput: Nothing of the kind, or an array of another shape or dtype.
    """
    timed = stopwatch or Stopwatch()

    def work(obtained: ImageInput) -> NDArray[np.float32]:
        with timed.measure("decode"):
            stored = _open(obtained, policy)
        with timed.measure("preprocess"):
            return program_input(stored, preprocessing)

    return await _in_thread(source, work, policy, limiter=limiter)


def in_rgb(source: ImageInput, format: ChannelOrder) -> ImageInput:  # noqa: A002
    """Return a view of an array with its channels in the order red, green, blue.

    Args:
        source: An array `(height, width, 3 or 4)`; with `RGB` anything, returned as it is.
        format: The order of its channels.

    Raises:
        InvalidConfig: `format` is none of its values, or does not go with the source.
    """
    if format == "RGB":
        return source
    if format not in get_args(ChannelOrder):
        raise InvalidConfig(f"format is one of {', '.join(get_args(ChannelOrder))}, not {format!r}")
    if not isinstance(source, np.ndarray):
        raise InvalidConfig(f"format={format!r} goes with arrays; files say it themselves")
    if source.shape[2:] != (len(format),):
        raise InvalidUserInput(
            f"an array of shape {source.shape}: with format={format!r} it must be (height, width, "
            f"{len(format)})"
        )
    return source[..., 2::-1] if format.startswith("BGR") else source[..., :3]


async def _in_thread(
    source: ImageInput,
    work: Callable[[ImageInput], _Result],
    policy: SourcePolicy,
    *,
    http_client: httpx.AsyncClient | None = None,
    limiter: CapacityLimiter | None = None,
) -> _Result:
    fetcher = ImageFetcher(policy, http_client=http_client)
    try:
        obtained = await fetcher.obtain(source)
    finally:
        await fetcher.aclose()
    return await run_in_thread(lambda: work(obtained), limiter=limiter or _default_limiter())


def _default_limiter() -> CapacityLimiter:
    limiter = _own_limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(available_cpus())
        _own_limiter.set(limiter)
    return limiter


def _open(source: ImageInput, policy: SourcePolicy) -> Stored:
    if isinstance(source, np.ndarray):
        stored = from_array(source)
        check_size(stored.size, policy)
        return stored
    if isinstance(source, Image.Image):
        return from_pillow(source, policy)
    data = _bytes_of(source, policy)
    if not looks_like_image(data) and _begins_as_image(data[:_HEAD_CHARACTERS]):
        raise ImageDecodeError(
            "these bytes are an image in base64: pass base64.b64decode(...) of them, or a str"
        )
    return open_encoded(data, policy).load()


def _bytes_of(source: object, policy: SourcePolicy) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str):
        return _bytes_of_string(source, policy)
    if isinstance(source, os.PathLike):
        return read_file(Path(os.fsdecode(source)), policy)
    if callable(getattr(source, "read", None)):
        return _read_open_file(source, policy)
    raise InvalidUserInput(
        f"a {type(source).__name__} is not an image: pass a URI, a path, bytes, an open file, a "
        "PIL image or a uint8 array (height, width, 3)"
    )


def _read_open_file(file: Any, policy: SourcePolicy) -> bytes:  # noqa: ANN401
    if inspect.iscoroutinefunction(file.read):
        raise InvalidUserInput(
            f"a {type(file).__name__} is read with await: pass the bytes that its read() returns"
        )
    try:
        data = file.read(policy.max_bytes + 1)
    except (OSError, ValueError) as exc:  # ValueError: a closed file
        raise FileReadFailed(f"the open file cannot be read: {exc}") from exc
    if not isinstance(data, bytes | bytearray):
        raise InvalidUserInput("the open file gives text and not bytes: open it in mode 'rb'")
    check_bytes(len(data), policy)
    if not data:
        raise ImageDecodeError("the open file has nothing left to read: was it read before?")
    return bytes(data)


def _bytes_of_string(source: str, policy: SourcePolicy) -> bytes:
    if not source.strip():
        raise InvalidUserInput("an empty string is not an image")
    kind = _kind_of(source, policy)
    if kind == "data":
        return _decode_data_uri(source.strip(), policy)
    if kind == "file":
        return read_file(_path_of_file_uri(source.strip()), policy)
    inline = _raw_base64(source, policy) if "data" in policy.schemes else None
    if inline is not None:
        return inline
    try:
        return read_file(Path(source), policy)
    except FileReadFailed as exc:
        if not isinstance(exc.__cause__, FileNotFoundError):
            raise
        raise FileReadFailed(
            f"{shorten(source)}: no such file, and neither a URI nor an image in base64"
            f"{_if_text(source)}"
        ) from exc.__cause__
    except SourceRefused as exc:
        if exc.rule != "schemes":
            raise
        raise SourceRefused(
            f"{shorten(source)}: neither a URI nor an image in base64{_if_text(source)}",
            rule=exc.rule,
            remedy=_ALLOW_SCHEME.format("file"),
        ) from None


def _if_text(source: str) -> str:
    is_path = re.search(r"[/\\]|\.\w{1,5}$", source)
    return "" if is_path else ". If it is a text: this model embeds images"


def _kind_of(source: str, policy: SourcePolicy) -> _Kind:
    """Tell what kind of source a string is, and refuse the ones the policy does not allow."""
    match = _SCHEME.match(source)
    scheme = match[1].lower() if match else ""
    if scheme in _KINDS:
        if scheme not in policy.schemes:
            raise _scheme_refused(source, scheme)
        return _KINDS[scheme]
    if match and match[2]:
        raise InvalidUserInput(
            f"{shorten(source)}: unknown URI scheme {scheme!r}; known are https, http, data, file"
        )
    return "bare"


_ALLOW_SCHEME = "allow it with SourcePolicy.allow(schemes=...) with {!r} among them"


def _scheme_refused(source: str, scheme: str) -> SourceRefused:
    what = "files are" if scheme == "file" else f"{scheme!r} is"
    return SourceRefused(
        f"{shorten(source)}: {what} not among the source policy's schemes",
        rule="schemes",
        remedy=_ALLOW_SCHEME.format(scheme),
    )


def _decode_data_uri(uri: str, policy: SourcePolicy) -> bytes:
    """Return the bytes inside a `data:` URI, read as browsers do (WHATWG Fetch, "data: URLs")."""
    comma = uri.find(",")
    if comma < 0:
        raise ImageDecodeError(f"{shorten(uri)}: a data URI needs a comma before its data")
    end = uri.find("#", comma)
    end = end if end >= 0 else len(uri)
    is_base64 = _BASE64_MARK.search(uri[:comma]) is not None
    check_bytes(_least_bytes(uri, comma + 1, end) if is_base64 else (end - comma + 1) // 3, policy)
    payload = uri[comma + 1 : end]
    if not is_base64:
        data = unquote_to_bytes(payload)
    else:
        data = _from_base64(unquote_to_bytes(payload) if "%" in payload else _ascii(payload))
    check_bytes(len(data), policy)
    return data


def _raw_base64(source: str, policy: SourcePolicy) -> bytes | None:
    """Return the bytes of a string that is an image in base64, or None where it is none."""
    head = source[:_HEAD_CHARACTERS].encode("utf-8", "replace")
    if not _begins_as_image(head) and len(source) <= _LONGEST_PATH:
        return None
    check_bytes(_least_bytes(source, 0, len(source)), policy)
    return _from_base64(_ascii(source))


def _begins_as_image(text: bytes) -> bool:
    compact = _BLANKS.sub(b"", text)
    try:
        return looks_like_image(_from_base64(compact[: len(compact) // 4 * 4]))
    except ImageDecodeError:
        return False


def _least_bytes(text: str, start: int, end: int) -> int:
    """Return how many bytes the base64 in a part of a text holds at least."""
    others = text.count("%", start, end) * 3
    others += sum(text.count(blank, start, end) for blank in " \t\r\n\f")
    return max(0, (end - start - others) // 4 * 3 - 2)


def _ascii(payload: str) -> bytes:
    try:
        return payload.encode("ascii")
    except UnicodeEncodeError as exc:
        raise ImageDecodeError("malformed base64: it has characters outside its alphabet") from exc


def _from_base64(payload: bytes) -> bytes:
    """Decode base64, url-safe or not, with blanks and with or without its padding."""
    compact = _BLANKS.sub(b"", payload).translate(_URL_SAFE)
    if len(compact) % 4 in (2, 3):
        compact += b"=" * (-len(compact) % 4)
    try:
        return base64.b64decode(compact, validate=True)
    except binascii.Error as exc:
        raise ImageDecodeError(f"malformed base64: {exc}") from exc


def _path_of_file_uri(uri: str) -> Path:
    """Return the path that a `file:` URI names (RFC 8089)."""
    try:
        parts = urlsplit(uri)
    except ValueError as exc:
        raise InvalidUserInput(f"{shorten(uri)}: a malformed file URI: {exc}") from exc
    if parts.netloc not in ("", "localhost"):
        raise InvalidUserInput(
            f"{shorten(uri)}: a file URI may name no host but localhost; write file:///path"
        )
    path = unquote_to_bytes(parts.path)
    if not path.startswith(b"/") or b"\0" in path:
        raise InvalidUserInput(f"{shorten(uri)}: a file URI needs an absolute path: file:///path")
    return Path(path.decode("utf-8", "surrogateescape"))


def read_file(path: Path, policy: SourcePolicy) -> bytes:
    """Read a complete file. It blocks, so call it from a worker thread.

    Args:
        path: Of a regular file; pipes, devices and folders are refused unopened.
        policy: Whether and where files may be read, and how many bytes.

    Raises:
        SourceRefused: The policy allows no files, or not this one.
        FileReadFailed: It is missing, unreadable or not a regular file.
        ImageTooLarge: It has more than the policy's `max_bytes`.
    """
    if "file" not in policy.schemes:
        raise _scheme_refused(str(path), "file")
    with _as_file_error(path), _opened(path, policy) as descriptor:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        check_bytes(status.st_size, policy)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:  # it grows, or is one of the kernel's
                data += file.read(policy.max_bytes + 1 - len(data))
    check_bytes(len(data), policy)
    return data


@contextmanager
def _opened(path: Path, policy: SourcePolicy) -> Iterator[int]:
    if policy.file_roots is None:
        _require_regular(path, path.stat())
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
    else:
        descriptor = _open_below(path, policy.file_roots)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_below(path: Path, roots: tuple[Path, ...]) -> int:
    """Open a file below one of the roots, following no symbolic link on the way down."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    for root in roots:
        top = Path(os.path.abspath(root))  # noqa: PTH100
        if ".." not in path.parts and absolute != top and absolute.is_relative_to(top):
            return _descend(path, top, absolute.relative_to(top).parts)
    raise _outside(path)


def _descend(path: Path, top: Path, parts: tuple[str, ...]) -> int:
    folder = os.open(top, os.O_RDONLY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise _outside(path)
        _require_regular(path, status)
        return os.open(parts[-1], os.O_RDONLY | _NO_WAIT | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError as exc:
        raise _outside(path) from exc
    finally:
        os.close(folder)


def _outside(path: Path) -> SourceRefused:
    return SourceRefused(
        f"{shorten(path)}: not below the source policy's file_roots, or reached through '..' or a "
        "symbolic link",
        rule="file_roots",
        remedy="allow its folder with SourcePolicy.allow(file_roots=...)",
    )


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise FileReadFailed(f"{shorten(path)}: {kind}, and not an image file")


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise FileReadFailed(f"{shorten(path)}: no such file") from exc
    except PermissionError as exc:
        raise FileReadFailed(f"{shorten(path)}: no permission to read it") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL character in the path
        reason = getattr(exc, "strerror", None) or exc
        raise FileReadFailed(f"{shorten(path)}: it cannot be read: {reason}") from exc
