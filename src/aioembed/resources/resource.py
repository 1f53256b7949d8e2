"""What can be fetched, and what lies in the cache."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import httpx

from aioembed._http import UnusableURL, parse_url, show_url
from aioembed.errors import InvalidConfig, InvalidModelSource, shorten

__all__ = ["CachedFile", "Resource"]

_TAIL_CHARACTERS = 64
_SHA256 = re.compile("[0-9a-f]{64}")
_UNSAFE = re.compile("[^A-Za-z0-9._-]+")


def _parse(url: str) -> httpx.URL:
    try:
        return parse_url(url)
    except UnusableURL as exc:
        raise InvalidModelSource(f"{show_url(url)} cannot be downloaded: {exc}") from exc


@dataclass(frozen=True)
class Resource:
    """A file on a server.

    Attributes:
        url: Where it is, `https:` (or `http:`).
        sha256: Published hash, 64 hexadecimal digits; None trusts the first download.
        size: In bytes, where known.

    Raises:
        InvalidModelSource: `url` is nothing that can be downloaded.
        InvalidConfig: `sha256` or `size` is malformed.
    """

    url: str
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        _parse(self.url)
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidConfig(
                f"sha256 is {shorten(self.sha256)}: give 64 lower-case hexadecimal digits"
            )
        if self.size is not None and self.size < 0:
            raise InvalidConfig(f"size is {self.size}: give a number of bytes")

    @cached_property
    def canonical_url(self) -> str:
        """The URL in its normal form, without fragment and credentials."""
        return str(_parse(self.url).copy_with(fragment=None, userinfo=b""))

    @cached_property
    def file_name(self) -> str:
        """A name for the file, made of the URL's last part."""
        tail = _parse(self.url).path.rstrip("/").rpartition("/")[2]
        return _UNSAFE.sub("_", tail).strip("._")[-_TAIL_CHARACTERS:] or "file"

    @cached_property
    def key(self) -> str:
        """Name of its folder in the cache: 128 bits of the URL's hash, then a readable tail."""
        digest = hashlib.sha256(self.canonical_url.encode()).hexdigest()[:32]
        return f"{digest}-{self.file_name}"

    @property
    def shown(self) -> str:
        """The URL for messages."""
        return show_url(self.url)


@dataclass(frozen=True)
class CachedFile:
    """A whole, verified file in the cache.

    Attributes:
        path: Where it lies.
        sha256: Of its bytes.
        size: In bytes.
        url: Where it came from.
        etag: The server's validator, where it gave one.
        commit: The hub's revision, where it gave one.
        trusted: Whether the hash was published, by the model's specification or by the hub. If
            not, the first download was trusted and its hash holds from then on.
        probed: Whether a trial run in a child process went well (`Cache.mark_probed`).
        fetched_at: When it was downloaded, in UTC.
        used_at: When it was last looked up, in UTC; two files are equal regardless of it.
    """

    path: Path
    sha256: str
    size: int
    url: str
    etag: str | None
    commit: str | None
    trusted: bool
    probed: bool
    fetched_at: datetime
    used_at: datetime = field(compare=False)
