"""A response's body, content-decoded and counted as it streams."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterator

import httpx

from ..errors import ImageFetchFailed, ImageTooLarge

__all__ = ["bounded_body"]

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_MAX_PIECE = 65_536


async def bounded_body(
    chunks: AsyncIterable[bytes], headers: httpx.Headers, max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield a body's bytes after content decoding, and never more than `max_bytes` of them.

    A body that expands a thousandfold is expanded 64 KiB at a time, so memory stays bounded.

    Args:
        chunks: The body as it comes over the wire.
        headers: The response's.
        max_bytes: The limit, which holds for the declared length too.

    Raises:
        ImageTooLarge: There are more.
        ImageFetchFailed: The content encoding is unknown or damaged.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower() or "identity"
    declared = headers.get("content-length", "")
    if encoding == "identity" and declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    decode = _decoder(encoding)
    seen = 0
    async for chunk in chunks:
        for piece in decode(chunk):
            seen += len(piece)
            if seen > max_bytes:
                raise _too_large(max_bytes)
            yield piece


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the response has more than {max_bytes} bytes, the source policy's max_bytes: allow more "
        "with SourcePolicy.allow(max_bytes=...)"
    )


class _Identity:
    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk


class _Inflate:
    def __init__(self, window_bits: int) -> None:
        self._inflater = zlib.decompressobj(window_bits)

    def __call__(self, chunk: bytes) -> Iterator[bytes]:
        try:
            while chunk and not self._inflater.eof:
                yield self._inflater.decompress(chunk, _MAX_PIECE)
                chunk = self._inflater.unconsumed_tail
        except zlib.error as exc:
            raise ImageFetchFailed(f"the response's compression is damaged: {exc}") from exc


def _decoder(encoding: str) -> _Identity | _Inflate:
    if encoding == "identity":
        return _Identity()
    if encoding not in _WINDOW_BITS:
        raise ImageFetchFailed(
            f"the server encoded the response as {encoding!r}, although it was asked not to"
        )
    return _Inflate(_WINDOW_BITS[encoding])
