"""What a source policy allows of a URL, and which internet addresses are public.

The ranges are those of IANA's special-purpose address registries (RFC 6890 and its successors),
written out because `ipaddress.is_global` differs between Python versions.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import httpx

from .._http import DEFAULT_PORTS, UnusableURL, show_url
from .._http import parse_url as parse_usable_url
from ..errors import SourceRefused
from .policy import SourcePolicy

__all__ = [
    "check_addresses",
    "check_url",
    "is_public",
    "parse_address",
    "parse_url",
]

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_V4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carrier-grade NAT; a cloud's metadata service too
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, although its range is public
        "169.254.0.0/16",  # link-local; metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Everything outside is refused: loopback, unspecified, IPv4-mapped and -compatible, NAT64
# (64:ff9b::/96, 64:ff9b:1::/48), discard-only, unique local, link-local, multicast.
_GLOBAL_UNICAST_V6 = ip_network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # IETF protocols; Teredo (2001::/32) among them
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)


def parse_address(host: str) -> Address | None:
    """Return the address that a URL's host is in its canonical form, or None for a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is an ordinary one of the public internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return (
        address.scope_id is None
        and address in _GLOBAL_UNICAST_V6
        and not any(address in network for network in _NOT_PUBLIC_V6)
    )


def _is_noncanonical(host: str) -> bool:
    """Whether a host is an IP address in a form that only some resolvers read.

    `127.1`, `0x7f000001`, `0177.0.0.1` and `2130706433` are: their last label is a number, which
    no public name's is (the rule of the WHATWG URL standard).
    """
    if parse_address(host) is not None:
        return False
    last = host.rstrip(".").rpartition(".")[2].lower()
    if last.isdecimal():
        return True
    return last.startswith("0x") and all(digit in "0123456789abcdef" for digit in last[2:])


class Endpoint(NamedTuple):
    """Where a URL leads: a host name or address in lower case without trailing dot, and a port."""

    host: str
    port: int


def parse_url(text: str) -> httpx.URL:
    """Parse an http or https URL, refusing what parsers are known to read differently.

    Raises:
        SourceRefused: It is malformed, or can lead nowhere; no policy allows it.
    """
    try:
        return parse_usable_url(text)
    except UnusableURL as exc:
        raise SourceRefused(f"{show_url(text)}: {exc}", rule="malformed") from None


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
    shown = show_url(url)
    if url.scheme not in DEFAULT_PORTS or url.scheme not in policy.schemes:
        raise _refused(f"{shown}: its scheme is {url.scheme!r}", "schemes")
    if url.userinfo and not policy.credentials:
        raise _refused(f"{shown}: it has a user name or password", "credentials", "True")
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    if _is_noncanonical(host):
        raise SourceRefused(
            f"{shown}: its host is a number that only some programs read as an address",
            rule="malformed",
            remedy="write an address as four numbers or as IPv6",
        )
    names = {host, url.host.lower().removesuffix(".")}
    if _matches(names, policy.deny_hosts):
        raise _refused(f"{shown}: its host is denied", "deny_hosts")
    if policy.allow_hosts is not None and not _matches(names, policy.allow_hosts):
        raise _refused(f"{shown}: its host is not listed", "allow_hosts")
    port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if policy.ports is not None and port not in policy.ports:
        raise _refused(f"{shown}: its port is {port}", "ports")
    return Endpoint(host, port)


def check_addresses(host: str, addresses: Iterable[str], policy: SourcePolicy) -> None:
    """Apply the rule on private addresses to all that a host has.

    Raises:
        SourceRefused: One of them is not on the public internet, and the policy wants that.
    """
    if policy.private_addresses:
        return
    for text in addresses:
        address = parse_address(text)
        if address is None or not is_public(address):
            # Which address it is, and what answers there, stays unsaid.
            raise _refused(f"{host!r} is not on the public internet", "private_addresses", "True")


def _refused(problem: str, rule: str, value: str = "...") -> SourceRefused:
    remedy = f"allow it with SourcePolicy.allow({rule}={value})"
    return SourceRefused(problem, rule=rule, remedy=remedy)


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    exact = {pattern.lower().removesuffix(".") for pattern in patterns}
    below = tuple(pattern[1:] for pattern in exact if pattern.startswith("*."))
    return any(name in exact or (below and name.endswith(below)) for name in names)
