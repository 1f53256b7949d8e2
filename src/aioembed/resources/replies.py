"""What to do with the part on the disk, given what the server answered: decided, not done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import httpx

from .hub import Linked
from .records import Journal

__all__ = ["Plan", "decide", "is_encoded", "is_framed", "range_headers", "validator"]

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes \*/(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        action: `append` the body to the part, `restart` with the body, `discard` the part and
            ask again for everything, or take the part as `complete`.
        total: Bytes of the whole file, where the answer tells.
    """

    action: Literal["append", "restart", "discard", "complete"]
    total: int | None = None


def range_headers(have: int, journal: Journal | None, *, hash_known: bool) -> dict[str, str]:
    """Return the headers that ask for the rest of a file of which `have` bytes are here.

    Without a validator a change on the server could not be seen, so the rest is asked for only
    if the whole file's hash is known.
    """
    if not have or journal is None:
        return {}
    if journal.validator is not None:
        return {"Range": f"bytes={have}-", "If-Range": journal.validator}
    return {"Range": f"bytes={have}-"} if hash_known else {}


def validator(headers: httpx.Headers) -> str | None:
    """Return a strong ETag, else Last-Modified: what If-Range may carry (RFC 9110, 13.1.5)."""
    etag: str | None = headers.get("ETag")
    if etag is not None:
        return None if etag.startswith("W/") else etag
    modified: str | None = headers.get("Last-Modified")
    return modified


def is_encoded(headers: httpx.Headers) -> bool:
    """Whether the body is compressed although identity was asked for."""
    return headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}


def is_framed(headers: httpx.Headers) -> bool:
    """Whether the end of the body can be told from a broken connection."""
    return "Content-Length" in headers or "Transfer-Encoding" in headers


def decide(
    status: int,
    headers: httpx.Headers,
    linked: Linked,
    *,
    have: int,
    journal: Journal | None,
    ranged: bool,
) -> Plan:
    """Decide on an answer with status 200, 206 or 416.

    Args:
        status: Of the answer.
        headers: Of the answer.
        linked: What the hub said on the way.
        have: Bytes on the disk.
        journal: What the server said earlier.
        ranged: Whether only the rest was asked for.
    """
    changed = journal is not None and _changed(headers, linked, journal)
    if status == httpx.codes.OK:
        return Plan("restart", linked.size if linked.size is not None else _length(headers))
    if not ranged or journal is None or changed:
        return Plan("discard")
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        match = _UNSATISFIED.fullmatch(headers.get("Content-Range", "").strip())
        whole = match is not None and int(match[1]) == have and _confirms(headers, journal)
        return Plan("complete", have) if whole else Plan("discard")
    return _decide_partial(headers, linked, have=have, known=journal.total)


def _decide_partial(
    headers: httpx.Headers, linked: Linked, *, have: int, known: int | None
) -> Plan:
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None or is_encoded(headers) or int(match[1]) != have:
        return Plan("discard")
    total = None if match[3] == "*" else int(match[3])
    totals = {value for value in (total, linked.size, known) if value is not None}
    if len(totals) > 1 or any(int(match[2]) != value - 1 for value in totals):
        return Plan("discard")
    return Plan("append", next(iter(totals), None))


def _changed(headers: httpx.Headers, linked: Linked, journal: Journal) -> bool:
    if linked.sha256 and journal.linked_sha256 and linked.sha256 != journal.linked_sha256:
        return True
    now = validator(headers)
    return None not in {now, journal.validator} and now != journal.validator


def _confirms(headers: httpx.Headers, journal: Journal) -> bool:
    return journal.validator is not None and validator(headers) == journal.validator


def _length(headers: httpx.Headers) -> int | None:
    value = headers.get("Content-Length", "")
    if is_encoded(headers) or not (value.isascii() and value.isdigit()):
        return None
    return int(value)
