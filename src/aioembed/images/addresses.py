"""Which internet addresses are public, and which host names are addresses in disguise.

The ranges are those of IANA's special-purpose address registries (RFC 6890 and its successors),
written out because `ipaddress.is_global` differs between Python versions.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["Address", "is_number_in_disguise", "is_public", "parse_address"]

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
    """Return the address that a URL's host writes in its usual form, or None for a name."""
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


def is_number_in_disguise(host: str) -> bool:
    """Whether a host is no address in the usual form, yet some resolvers read it as one.

    `127.1`, `0x7f000001`, `0177.0.0.1` and `2130706433` are: their last label is a number, which
    no public name's is (the rule of the WHATWG URL standard).
    """
    if parse_address(host) is not None:
        return False
    last = host.rstrip(".").rpartition(".")[2].lower()
    if last.isdecimal():
        return True
    return last.startswith("0x") and all(digit in "0123456789abcdef" for digit in last[2:])
