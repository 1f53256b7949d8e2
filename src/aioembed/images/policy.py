"""What a source may be and how much of it is read: `SourcePolicy`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..models import Frozen

__all__ = ["IMAGE_FORMATS", "ImageFormat", "SourcePolicy"]

_WebFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
_OtherFormat = Literal["HEIF", "JPEG2000", "ICO", "PPM", "QOI", "PCX", "DIB", "TGA"]
ImageFormat = _WebFormat | _OtherFormat
Scheme = Literal["https", "http", "data", "file"]

_WEB_FORMATS: frozenset[ImageFormat] = frozenset(get_args(_WebFormat))
IMAGE_FORMATS: frozenset[ImageFormat] = _WEB_FORMATS | frozenset(get_args(_OtherFormat))
"""Every format that can be allowed."""

_HOST = re.compile(  # a name or an IPv4 address, or an IPv6 address
    r"(?:\*\.)?[^\s/:?#@*\[\]]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?"
)
_MEBI = 1024 * 1024


class SourcePolicy(Frozen):
    """What image sources are accepted, and the limits on each of them.

    Start from `trusted()` or `untrusted()` and adjust with `allow()`. Byte, pixel, memory and
    dimension limits hold for every kind of source, in-memory ones included.

    Attributes:
        schemes: URI schemes. `file` stands for paths too, and `data` for raw base64 too.
        allow_hosts: The only hosts that may be asked, `*.example.org` standing for every
            subdomain of `example.org`; None for any.
        deny_hosts: Hosts that may not be asked, in the same notation.
        ports: The only ports that may be asked; None for any.
        private_addresses: Whether hosts may resolve to addresses that are not on the public
            internet (private, loopback, link-local, shared, multicast, reserved, and IPv6 forms
            that embed an IPv4 address).
        environment_proxies: Whether URLs are fetched through the proxies that HTTPS_PROXY,
            HTTP_PROXY, ALL_PROXY and NO_PROXY name. Goes with `private_addresses` only: what a
            proxy connects to cannot be checked.
        credentials: Whether a URL may carry a user name and password.
        max_redirects: Most redirects followed for one image.
        file_roots: The only folders that files may lie in, symbolic links below them being
            refused; None for any file.
        max_bytes: Most bytes of one encoded image, after any content decoding.
        max_pixels: Most pixels of one image, as its header says.
        max_dimension: Most pixels along one side.
        max_memory: Most bytes of memory that decoding one image may take, estimated from its
            size, format and mode before it is decoded; None for as much as there is.
        timeout: Seconds that fetching one image may take in all, redirects included.
        formats: Image formats that are decoded.
        truncated: What becomes of a JPEG or PNG that is cut off: `error`, or `allow`, which takes
            what there is, the missing part grey or black as in most viewers.
    """

    schemes: frozenset[Scheme]
    allow_hosts: frozenset[str] | None = None
    deny_hosts: frozenset[str] = frozenset()
    ports: frozenset[int] | None = None
    private_addresses: bool = False
    environment_proxies: bool = False
    credentials: bool = False
    max_redirects: int = Field(default=5, ge=0)
    file_roots: tuple[Path, ...] | None = None
    max_bytes: PositiveInt
    max_pixels: PositiveInt
    max_dimension: PositiveInt
    max_memory: PositiveInt | None = None
    timeout: PositiveFloat = 30.0
    formats: frozenset[ImageFormat] = IMAGE_FORMATS
    truncated: Literal["error", "allow"] = "error"

    @field_validator("allow_hosts", "deny_hosts")
    @classmethod
    def _are_hosts(cls, hosts: frozenset[str] | None) -> frozenset[str] | None:
        for host in hosts or ():
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a host: give its name without scheme, port and path, such as "
                    "example.org or *.example.org"
                )
        return hosts

    @model_validator(mode="after")
    def _proxies_are_unchecked(self) -> Self:
        if self.environment_proxies and not self.private_addresses:
            raise ValueError("environment_proxies goes with private_addresses=True only")
        return self

    @classmethod
    def trusted(cls) -> Self:
        """Return the policy for a program's own sources: files and any host, with wide limits.

        A phone's photo of 200 megapixels passes, and takes 0.8 GB as a JPEG.
        """
        return cls(
            schemes=frozenset(("https", "http", "data", "file")),
            private_addresses=True,
            credentials=True,
            max_redirects=10,
            max_bytes=256 * _MEBI,
            max_pixels=300_000_000,
            max_dimension=65_535,
            timeout=60.0,
        )

    @classmethod
    def untrusted(cls) -> Self:
        """Return the policy for untrusted URIs: public web hosts and data URIs, within limits.

        Only ports 80 and 443 are asked, and decoding one image takes 512 MiB of memory at most:
        64 megapixels of a JPEG, 28 of a WebP.
        """
        return cls(
            schemes=frozenset(("https", "http", "data")),
            ports=frozenset((80, 443)),
            max_redirects=3,
            max_bytes=32 * _MEBI,
            max_pixels=64_000_000,
            max_dimension=32_768,
            max_memory=512 * _MEBI,
            timeout=15.0,
            formats=_WEB_FORMATS,
        )

    def allow(self, **changes: object) -> Self:
        """Return this policy with some fields changed, laxer or stricter.

        Args:
            **changes: Fields of this class and their new values.

        Raises:
            InvalidConfig: There is no such field, or the value does not fit it.

        Example:
            ```python
            SourcePolicy.untrusted().allow(allow_hosts={"images.example.org"}, ports={443})
            ```
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(fields | changes))
