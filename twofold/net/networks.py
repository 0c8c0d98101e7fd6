"""Sets of addresses, as lists of networks describe them: who is let in, who is believed.

Pure. Answers are remembered, for a proxy hears the same few addresses again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

MAX_KNOWN = 4096  # addresses remembered of one set


def canonical(text: str) -> IPv4Address | IPv6Address | None:
    """The address that `text` means, or None.

    A socket that listens on :: reports IPv4 clients as ::ffff:1.2.3.4; they are their IPv4 selves
    here, and a zone (fe80::1%eth0), which is of this machine only, is left away.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


class Networks:
    """`"10.1.2.3" in Networks(("10.0.0.0/8",))`; a text that is no address is in none."""

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
