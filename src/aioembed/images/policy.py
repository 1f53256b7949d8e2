"""What a source may be and how much of it is read: `SourcePolicy`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from ..errors import InvalidConfig

__all__ = ["IMAGE_FORMATS", "ImageFormat", "Scheme", "SourcePolicy"]

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
Scheme = Literal["https", "http", "data", "file"]

IMAGE_FORMATS: frozenset[ImageFormat] = frozenset(
    ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
)
"""Every format that can be allowed."""

_MEBI = 1024 * 1024


class SourcePolicy(BaseModel):
    """What image sources are accepted, and the limits on each of them.

    Start from `trusted()` or `untrusted()` and adjust with `allow()`. Byte, pixel and dimension
    limits hold for every kind of source, in-memory ones included.

    Attributes:
        schemes: URI schemes. `file` stands for paths too, and `data` for raw base64 too.
        allow_hosts: The only hosts that may be asked, `*.example.org` standing for every
            subdomain of `example.org`; None for any.
        deny_hosts: Hosts that may not be asked, in the same notation.
        ports: The only ports that may be asked; None for any.
        private_addresses: Whether hosts may resolve to addresses that are not on the public
            internet (private, loopback, link-local, shared, multicast, reserved, and IPv6 forms
            that embed an IPv4 address).
        credentials: Whether a URL may carry a user name and password.
        max_redirects: Most redirects followed for one image.
        file_roots: The only folders that files may lie in, symbolic links below them being
            refused; None for any file.
        max_bytes: Most bytes of one encoded image, after any content decoding.
        max_pixels: Most pixels of one image, as its header says.
        max_dimension: Most pixels along one side.
        timeout: Seconds that fetching one image may take in all, redirects included.
        formats: Image formats that are decoded.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    schemes: frozenset[Scheme]
    allow_hosts: frozenset[str] | None = None
    deny_hosts: frozenset[str] = frozenset()
    ports: frozenset[int] | None = None
    private_addresses: bool = False
    credentials: bool = False
    max_redirects: int = Field(default=5, ge=0)
    file_roots: tuple[Path, ...] | None = None
    max_bytes: PositiveInt
    max_pixels: PositiveInt
    max_dimension: PositiveInt
    timeout: PositiveFloat = 30.0
    formats: frozenset[ImageFormat] = IMAGE_FORMATS

    def __init__(self, **fields: object) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as exc:
            wrong = "; ".join(
                f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
                for error in exc.errors(include_url=False)
            )
            raise InvalidConfig(f"SourcePolicy cannot be made: {wrong}") from exc

    @classmethod
    def trusted(cls) -> Self:
        """Return the policy for a program's own sources: files and any host, with wide limits."""
        return cls(
            schemes=frozenset(("https", "http", "data", "file")),
            private_addresses=True,
            credentials=True,
            max_redirects=10,
            max_bytes=256 * _MEBI,
            max_pixels=150_000_000,
            max_dimension=65_535,
            timeout=60.0,
        )

    @classmethod
    def untrusted(cls) -> Self:
        """Return the policy for strangers' URIs: public web hosts and data URIs, within limits.

        Only ports 80 and 443 are asked, and one image takes about 0.5 GB of memory at most.
        """
        return cls(
            schemes=frozenset(("https", "http", "data")),
            ports=frozenset((80, 443)),
            max_redirects=3,
            max_bytes=32 * _MEBI,
            max_pixels=64_000_000,
            max_dimension=32_768,
            timeout=15.0,
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
