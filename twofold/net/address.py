"""The text format of listening addresses and instance addresses.

Pure: parses a text to an address or None; nothing is resolved or opened.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

MAX_PORT = 65535
MAX_UNIX_PATH = 107  # bytes; sockaddr_un
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([A-Za-z0-9_.-]+)|(\*)):([0-9]{1,5})")

# RFC 1035, 2.3.4: labels of up to 63 bytes, and 253 of them with their dots.
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address (`host`, `port`) or a Unix socket (`path`)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_loopback(self) -> bool:
        """Whether the address is in this process's network namespace."""
        return self.host.startswith("127.") or self.host in ("::1", "localhost")

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """The address of one instance; with `dns`, a name that resolves to any number of instances."""

    address: Address
    dns: bool = False

    @property
    def name(self) -> str:
        """The name in the admin API, the metrics and the log."""
        if self.address.is_unix:
            return str(self.address)
        return f"{'dns+' if self.dns else ''}http://{self.address}"


def tcp(text: str) -> Address | None:
    """Parse HOST:PORT, with an IPv6 address in brackets, and * for all addresses. None if invalid."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[4]) > MAX_PORT:
        return None
    if (match[1] and not _is_ipv6(match[1])) or (match[2] and not _NAME.fullmatch(match[2])):
        return None
    return Address(match[1] or match[2] or "0.0.0.0", int(match[4]))


def unix(text: str) -> Address | None:
    """Parse unix:/PATH with an absolute path. None if invalid."""
    path = text.removeprefix("unix:")
    if path == text or not path.startswith("/") or len(path.encode()) > MAX_UNIX_PATH:
        return None
    return Address(path=path) if path.isprintable() else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def listening(text: str) -> Address | None:
    return unix(text) if text.startswith("unix:") else tcp(text)


def upstream(text: str) -> Target | None:
    """Parse http://HOST:PORT, unix:/PATH or dns+http://NAME:PORT; port 80 is the default."""
    if text.startswith("unix:"):
        path = unix(text)
        return Target(path) if path else None
    dns, plain = text.startswith("dns+"), text.removeprefix("dns+")
    authority = plain.removeprefix("http://").removesuffix("/")
    if authority == plain.removesuffix("/"):
        return None
    address = tcp(authority) or tcp(f"{authority}:80")
    if address is None or not address.port or "*" in authority:
        return None
    return Target(address, dns)
