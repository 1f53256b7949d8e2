"""The rules of a source policy that concern a URL, before anything is resolved or connected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import httpx

from ..errors import SourceRefused, shorten
from .addresses import is_number_in_disguise, parse_address
from .policy import SourcePolicy

__all__ = ["Endpoint", "check_url", "parse_url", "refused", "shown"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORTS = range(1, 65_536)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


class Endpoint(NamedTuple):
    """Where a URL leads: a host name or address in lower case without trailing dot, and a port."""

    host: str
    port: int


def shown(url: httpx.URL) -> str:
    """Return a URL for a message, without user name, password, query and fragment."""
    return shorten(str(url.copy_with(userinfo=b"", query=None, fragment=None)))


def refused(what: str, rule: str, hint: str) -> SourceRefused:
    """Return the error that names the rule, and how a caller would allow it."""
    return SourceRefused(f"{what} (rule {rule}): {hint}", rule=rule)


def parse_url(text: str) -> httpx.URL:
    """Parse an http or https URL, refusing what parsers are known to read differently.

    Raises:
        SourceRefused: It is malformed; no policy allows it.
    """
    # The text itself is not repeated: it may hold a password that cannot be told apart.
    hint = "percent-encode it in the path or query"
    if _NOT_IN_URLS.search(text):
        what = "the URL has a backslash, blank or control character"
        raise refused(what, "malformed", hint)
    authority = _AUTHORITY.match(text)
    if authority is None or "%" in authority[1].rpartition("@")[2]:
        raise refused("the URL has no plain host", "malformed", "write it as https://host/path")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as exc:
        what = f"the URL is malformed, {exc}"
        raise refused(what, "malformed", "write it as https://host/path") from exc
    return url


def check_url(url: httpx.URL, policy: SourcePolicy) -> Endpoint:
    """Apply the rules on scheme, credentials, host and port to a URL.

    Args:
        url: Of a first request or of a redirect's target.
        policy: With the rules.

    Returns:
        Where it leads.

    Raises:
        SourceRefused: A rule refuses it.
    """
    if url.scheme not in _DEFAULT_PORTS or url.scheme not in policy.schemes:
        hint = "allow with SourcePolicy.allow(schemes=...)"
        raise refused(f"{shown(url)}: scheme {url.scheme!r}", "schemes", hint)
    if url.userinfo and not policy.credentials:
        hint = "leave them out, or use SourcePolicy.allow(credentials=True)"
        raise refused(f"{shown(url)}: a user name or password in the URL", "credentials", hint)
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    _check_host(url, host, policy)
    port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if port not in _PORTS:
        what = f"{shown(url)}: no server can have port {port}"
        raise refused(what, "malformed", f"a port is a number from 1 to {_PORTS[-1]}")
    if policy.ports is not None and port not in policy.ports:
        hint = "allow with SourcePolicy.allow(ports=...)"
        raise refused(f"{shown(url)}: port {port}", "ports", hint)
    return Endpoint(host, port)


def _check_host(url: httpx.URL, host: str, policy: SourcePolicy) -> None:
    if is_number_in_disguise(host):
        what = f"{shown(url)}: a number that only some programs read as an address"
        raise refused(what, "malformed", "write an address as four numbers or as IPv6")
    if parse_address(host) is None and not _NAME.fullmatch(host):
        raise refused(f"{shown(url)}: no host name", "malformed", "write https://host/path")
    names = {host, _in_unicode(url).lower().removesuffix(".")}
    if _matches(names, policy.deny_hosts):
        hint = "allow with SourcePolicy.allow(deny_hosts=...)"
        raise refused(f"{shown(url)}: a denied host", "deny_hosts", hint)
    if policy.allow_hosts is not None and not _matches(names, policy.allow_hosts):
        hint = "allow with SourcePolicy.allow(allow_hosts=...)"
        raise refused(f"{shown(url)}: a host that is not listed", "allow_hosts", hint)


def _in_unicode(url: httpx.URL) -> str:
    try:
        return url.host
    except (
        UnicodeError
    ):  # punycode outside of IDNA 2008, as emoji are: DNS may have it all the same
        return url.raw_host.decode("ascii")


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    exact = {pattern.lower().removesuffix(".") for pattern in patterns}
    below = tuple(pattern[1:] for pattern in exact if pattern.startswith("*."))
    return any(name in exact or (below and name.endswith(below)) for name in names)
