"""What a string that names an image says: which kind of source it is, and its inline bytes."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from ..errors import ImageDecodeError, InvalidUserInput, SourceRefused, shorten
from .decode import check_bytes
from .policy import SourcePolicy
from .sniff import looks_like_image

__all__ = ["decode_data_uri", "kind_of", "path_of_file_uri", "raw_base64", "refuse_scheme"]

Kind = Literal["http", "data", "file", "bare"]

_KINDS: dict[str, Kind] = {"http": "http", "https": "http", "data": "data", "file": "file"}
# One letter before the colon is a drive, not a scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SCHEME_AND_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HEAD_CHARACTERS = 64
_LONGEST_PATH = 4096
_BLANKS = re.compile(rb"[ \t\r\n]+")


def kind_of(source: str, policy: SourcePolicy) -> Kind:
    """Tell what kind of source a string is, and refuse the ones the policy does not allow.

    Raises:
        SourceRefused: The policy's `schemes` do not have it.
        InvalidUserInput: A URI of a scheme that no policy can allow.
    """
    match = _SCHEME.match(source)
    scheme = match[1].lower() if match else ""
    if scheme in _KINDS:
        if scheme not in policy.schemes:
            raise refuse_scheme(source, scheme)
        return _KINDS[scheme]
    if _SCHEME_AND_AUTHORITY.match(source):
        raise InvalidUserInput(
            f"{shorten(source)}: unknown URI scheme {scheme!r}; known are https, http, data, file"
        )
    return "bare"


def refuse_scheme(source: str, scheme: str) -> SourceRefused:
    """Return the error for a scheme, or for a path where the scheme is `file`."""
    what = "files are" if scheme == "file" else f"{scheme!r} is"
    return SourceRefused(
        f"{shorten(source)}: {what} not among the source policy's schemes: allow with "
        f"SourcePolicy.allow(schemes=...) with {scheme!r} among them",
        rule="schemes",
    )


def decode_data_uri(uri: str, policy: SourcePolicy) -> bytes:
    """Return the bytes inside a `data:` URI (RFC 2397), base64 or percent-encoded.

    Raises:
        ImageTooLarge: It holds more than the policy's `max_bytes`; nothing is decoded then.
        ImageDecodeError: It is malformed.
    """
    comma = uri.find(",")
    if comma < 0:
        raise ImageDecodeError(f"{shorten(uri)}: a data URI needs a comma before its data")
    if not uri[:comma].lower().rstrip().endswith(";base64"):
        check_bytes((len(uri) - comma + 1) // 3, policy)
        data = unquote_to_bytes(uri[comma + 1 :])
        check_bytes(len(data), policy)
        return data
    check_bytes(_least_bytes(uri, comma + 1), policy)
    payload = uri[comma + 1 :]
    data = _from_base64(unquote_to_bytes(payload) if "%" in payload else _ascii(payload))
    check_bytes(len(data), policy)
    return data


def raw_base64(source: str, policy: SourcePolicy) -> bytes | None:
    """Return the bytes of a string that is an image in base64, or None where it is none.

    Raises:
        ImageTooLarge: It holds more than the policy's `max_bytes`; nothing is decoded then.
        ImageDecodeError: It begins as an image does, or is longer than any path, yet is
            malformed.
    """
    head = _BLANKS.sub(b"", source[:_HEAD_CHARACTERS].encode("utf-8", "replace"))
    try:
        begins_as_image = looks_like_image(_from_base64(head[: len(head) // 4 * 4]))
    except ImageDecodeError:
        begins_as_image = False
    if not begins_as_image and len(source) <= _LONGEST_PATH:
        return None
    check_bytes(_least_bytes(source, 0), policy)
    return _from_base64(_ascii(source))


def path_of_file_uri(uri: str) -> Path:
    """Return the path that a `file:` URI names (RFC 8089).

    Raises:
        InvalidUserInput: It names another host, or no path.
    """
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


def _least_bytes(text: str, start: int) -> int:
    """Return how many bytes the base64 from `start` on holds at least."""
    others = text.count("%", start) * 3 + sum(text.count(blank, start) for blank in " \t\r\n")
    return max(0, (len(text) - start - others) // 4 * 3 - 2)


def _ascii(payload: str) -> bytes:
    try:
        return payload.encode("ascii")
    except UnicodeEncodeError as exc:
        raise ImageDecodeError("malformed base64: it has characters outside its alphabet") from exc


def _from_base64(payload: bytes) -> bytes:
    compact = _BLANKS.sub(b"", payload)
    try:
        return base64.b64decode(compact, validate=True)
    except binascii.Error as exc:
        raise ImageDecodeError(f"malformed base64: {exc}") from exc
