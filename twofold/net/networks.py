"""Sets of addresses, defined by lists of networks, for access control and trust.

Pure. Results are cached, because a proxy tests the same few addresses repeatedly.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

MAX_KNOWN = 4096  # cached addresses per set


def canonical(text: str) -> IPv4Address | IPv6Address | None:
    """The canonical address of `text`, or None.

    IPv4-mapped addresses (::ffff:1.2.3.4, reported by a socket on ::) become IPv4; a zone (fe80::1%eth0),
    which is local to this machine, is removed.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


class Networks:
    """`"10.1.2.3" in Networks(("10.0.0.0/8",))` is true; false for a text that is not an address."""

    __slots__ = ("_known", "_networks")

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(ip_network(text) for text in texts)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, text: str) -> bool:
        known = self._known.get(text)
        if known is None:
            address = canonical(text)
            known = address is not None and any(address in network for network in self._networks)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[text] = known
        return known
