"""The Hugging Face hub's rules: mirror, token, offline switch and the headers about large files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Self

import httpx

from .._http import UnusableURL, is_loopback, origin, parse_url, show_url
from ..errors import InvalidConfig

__all__ = ["Hub", "Linked", "is_offline"]

_HUB = httpx.URL("https://huggingface.co")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
_SHA256_ETAG = re.compile('(?:W/)?"?([0-9a-fA-F]{64})"?')
_TOKEN = re.compile("[!-~]+")


def is_offline(offline: bool | None) -> bool:
    """Return `offline`, or what the variable `HF_HUB_OFFLINE` says where that is None."""
    if offline is not None:
        return offline
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


@dataclass(frozen=True)
class Hub:
    """Which server is the hub, and the token that only it may see.

    Attributes:
        endpoint: The hub, or the mirror that stands in for it.
        token: For gated and private models.
    """

    endpoint: httpx.URL
    token: str | None = field(repr=False)

    @classmethod
    def configured(cls, endpoint: str | None = None, token: str | None = None) -> Self:
        """Fill in what is None from `HF_ENDPOINT` and `HF_TOKEN`; an empty token is none.

        Raises:
            InvalidConfig: The endpoint is not an http(s) URL.
        """
        chosen = endpoint or os.environ.get("HF_ENDPOINT") or str(_HUB)
        try:
            url = parse_url(chosen)
        except UnusableURL as exc:
            raise InvalidConfig(
                f"the endpoint {show_url(chosen)} (HF_ENDPOINT) cannot be used: {exc}"
            ) from exc
        token = os.environ.get("HF_TOKEN") if token is None else token
        return cls(url, (token or "").strip() or None)

    def rewrite(self, url: httpx.URL) -> httpx.URL:
        """Return the mirror's URL for one of the hub, any other URL unchanged."""
        if origin(url) != origin(_HUB) or origin(self.endpoint) == origin(_HUB):
            return url
        prefix = self.endpoint.raw_path.rstrip(b"/")
        return self.endpoint.copy_with(raw_path=prefix + url.raw_path)

    def is_own(self, url: httpx.URL) -> bool:
        """Whether the hub itself answers at `url`, over a connection that can be believed."""
        secure = url.scheme == "https" or is_loopback(url)
        return secure and origin(url) == origin(self.endpoint)

    def credentials(self, url: httpx.URL) -> dict[str, str]:
        """Return the header with the token if `url` may see it.

        Raises:
            InvalidConfig: The token has a character that a header cannot carry.
        """
        if self.token is None or not self.is_own(url):
            return {}
        if not _TOKEN.fullmatch(self.token):
            raise InvalidConfig(
                "the token of the hub (HF_TOKEN) has a blank, a line break or a letter outside "
                "ASCII: copy it again, alone"
            )
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Linked:
    """What the hub says of a large file on the redirect to where it is stored.

    Attributes:
        sha256: Of the file (`X-Linked-Etag`), where it has the form of one.
        size: In bytes (`X-Linked-Size`).
        commit: Revision of the repository (`X-Repo-Commit`).
        trusted: Whether the hub itself said so, and not just any server.
    """

    sha256: str | None = None
    size: int | None = None
    commit: str | None = None
    trusted: bool = False

    @classmethod
    def read(cls, headers: httpx.Headers, *, trusted: bool) -> Self:
        """Read the headers of one answer."""
        match = _SHA256_ETAG.fullmatch(headers.get("X-Linked-Etag", "").strip())
        size = headers.get("X-Linked-Size", "")
        return cls(
            sha256=match[1].lower() if match else None,
            size=int(size) if size.isascii() and size.isdigit() else None,
            commit=headers.get("X-Repo-Commit"),
            trusted=trusted,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self.sha256 is None and self.size is None and self.commit is None
