"""The PROXY protocol, versions 1 and 2: the client's address, sent by a proxy before the first byte.

Pure: parses bytes to a `ProxyLine`, and renders lines.  The caller requires a line from every trusted peer,
and accepts it from no other: with an optional line, a client of a proxy that sends none could send its own.
(HAProxy's doc/proxy-protocol.txt, version of 2020.)
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

MAX_V1 = 107  # bytes with CRLF (section 2.1)
MAX_SIZE = 536  # bytes of version 2: the least payload of one TCP segment
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_V2 = Struct("!12sBBH")  # signature, version and command, family and protocol, length
_TCP4, _TCP6, _UNIX, _UNSPECIFIED = 0x11, 0x21, 0x31, 0x00
_PAIRS = {_TCP4: Struct("!4s4sHH"), _TCP6: Struct("!16s16sHH")}
_UNIX_SIZE = 216
_LOCAL, _PROXY = 0x20, 0x21
_CHECKSUM = 0x03  # the type of the TLV with the CRC32c of the header


class ConnectionAddresses(NamedTuple):
    """Both ends of the connection that a proxy accepted."""

    source: str
    source_port: int
    destination: str
    destination_port: int


class ProxyLine(NamedTuple):
    size: int  # bytes of the line
    endpoints: ConnectionAddresses | None  # None: the proxy's own connection, or unknown


class BadProxyLine(Exception):
    """The first bytes are not a valid PROXY line; the connection must be closed without a response."""


def parse(data: bytes) -> ProxyLine | None:
    """The line at the start of `data`; None while more bytes are needed. Raises BadProxyLine."""
    if data.startswith(SIGNATURE[: len(data)]):
        return _parse_v2(data) if len(data) >= _V2.size else None
    if not b"PROXY ".startswith(data[:6]):
        raise BadProxyLine("the connection does not begin with a PROXY line")
    end = data.find(b"\n", 0, MAX_V1) + 1
    if end:
        return ProxyLine(end, _parse_v1(data[:end]))
    if len(data) >= MAX_V1:
        raise BadProxyLine(f"the PROXY line is longer than {MAX_V1} bytes")
    return None


def needed(data: bytes) -> int:
    """The number of bytes that may be read next without reading past the end of the line.

    A TLS handshake may follow, which OpenSSL must read from its first byte.
    """
    if len(data) < len(SIGNATURE):  # no line of either version is shorter
        return len(SIGNATURE) - len(data)
    if not data.startswith(SIGNATURE):
        return 1
    if len(data) < _V2.size:
        return _V2.size - len(data)
    return _V2.size + int.from_bytes(data[14:16], "big") - len(data)


def render(version: str, endpoints: ConnectionAddresses | None) -> bytes:
    """The line to send; `version` is v1 or v2. Without endpoints, the sender itself is the client."""
    if endpoints is None:
        return b"PROXY UNKNOWN\r\n" if version == "v1" else _V2.pack(SIGNATURE, _LOCAL, _UNSPECIFIED, 0)
    family = IPv6Address if ":" in endpoints.source else IPv4Address
    source, destination = family(endpoints.source), family(endpoints.destination)
    ports = endpoints.source_port, endpoints.destination_port
    if version == "v1":
        return b"PROXY TCP%d %b %b %d %d\r\n" % (
            source.version, str(source).encode(), str(destination).encode(), *ports
        )  # fmt: skip
    kind = _TCP6 if source.version == 6 else _TCP4
    pair = _PAIRS[kind].pack(source.packed, destination.packed, *ports)
    return _V2.pack(SIGNATURE, _PROXY, kind, len(pair)) + pair


def _parse_v1(line: bytes) -> ConnectionAddresses | None:
    if _V1_UNKNOWN.fullmatch(line):
        return None
    match = _V1.fullmatch(line)
    if match is None:
        raise BadProxyLine("the PROXY line is malformed")
    kind, *addresses, source_port, destination_port = (group.decode() for group in match.groups())
    family = IPv4Address if kind == "TCP4" else IPv6Address
    try:
        source, destination = (str(family(address)) for address in addresses)
    except AddressValueError:
        raise BadProxyLine("the PROXY line has a wrong address") from None
    for port in (source_port, destination_port):
        if str(int(port)) != port or int(port) > 65535:
            raise BadProxyLine("the PROXY line has a wrong port")
    return ConnectionAddresses(source, int(source_port), destination, int(destination_port))


def _parse_v2(data: bytes) -> ProxyLine | None:
    _, command, kind, length = _V2.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise BadProxyLine("the PROXY header has an unknown version or command")
    size = _V2.size + length
    if size > MAX_SIZE:
        raise BadProxyLine(f"the PROXY header is longer than {MAX_SIZE} bytes")
    if len(data) < size:
        return None
    if command == _LOCAL:  # section 2.2: the addresses are ignored
        return ProxyLine(size, None)
    pair = _PAIRS.get(kind)
    if pair is None and kind not in (_UNIX, _UNSPECIFIED):
        raise BadProxyLine("the PROXY header speaks of something else than TCP")
    taken = pair.size if pair else _UNIX_SIZE if kind == _UNIX else 0
    if length < taken:
        raise BadProxyLine("the PROXY header is too short for its addresses")
    if kind != _UNSPECIFIED:
        _check_extensions(data[:size], _V2.size + taken)
    if pair is None:
        return ProxyLine(size, None)
    source, destination, source_port, destination_port = pair.unpack_from(data, _V2.size)
    family = IPv4Address if kind == _TCP4 else IPv6Address
    ends = ConnectionAddresses(str(family(source)), source_port, str(family(destination)), destination_port)
    return ProxyLine(size, ends)


def _check_extensions(header: bytes, at: int) -> None:
    """Check the TLVs after the addresses: each must fit, and a checksum must be correct."""
    while at < len(header):
        start = at + 3
        length = int.from_bytes(header[at + 1 : start], "big")
        if start + length > len(header):
            raise BadProxyLine("an extension of the PROXY header is longer than the header")
        if header[at] == _CHECKSUM:
            blanked = header[:start] + bytes(length) + header[start + length :]
            if length != 4 or crc32c(blanked) != int.from_bytes(header[start : start + 4], "big"):
                raise BadProxyLine("the checksum of the PROXY header is wrong")
        at = start + length


def crc32c(data: bytes) -> int:
    """The CRC32c of RFC 9260, appendix A. Bitwise, because a header is short."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
