"""The PROXY protocol: what is read, what is refused, and that both versions say the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.wire.proxy_protocol import (
    MAX_SIZE,
    MAX_V1,
    SIGNATURE,
    BadProxyLine,
    ConnectionAddresses,
    ProxyLine,
    crc32c,
    needed,
    parse,
    render,
)

FOUR = ConnectionAddresses("192.0.2.1", 54321, "10.0.0.1", 443)
SIX = ConnectionAddresses("2001:db8::1", 54321, "fd00::2", 443)
IPV4 = bytes([192, 0, 2, 1, 10, 0, 0, 1, 0xD4, 0x31, 1, 0xBB])


def header(payload: bytes, command: int = 0x21, kind: int = 0x11) -> bytes:
    return SIGNATURE + bytes([command, kind]) + len(payload).to_bytes(2, "big") + payload


@pytest.mark.parametrize(
    ("line", "endpoints"),
    [
        (b"PROXY TCP4 192.0.2.1 10.0.0.1 54321 443\r\n", FOUR),
        (b"PROXY TCP6 2001:db8::1 fd00::2 54321 443\r\n", SIX),
        (
            b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            ConnectionAddresses("0.0.0.0", 0, "255.255.255.255", 65535),
        ),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f::1 whatever 1 2\r\n", None),
        (b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 16) + b"\r\n", None),
        (header(IPV4), FOUR),
        (header(IPV4 + b"\x04\x00\x02ab\x04\x00\x00"), FOUR),  # two NOOPs
        (header(b"", 0x20, 0x00), None),
        (header(b"\x04\xff\xff", 0x20, 0x77), None),  # LOCAL: the rest is to be discarded
        (header(b"", 0x21, 0x00), None),
        (header(bytes(216), 0x21, 0x31), None),
        (header(IPV4 + b"\x04" + (MAX_SIZE - 16 - 15).to_bytes(2, "big") + bytes(MAX_SIZE - 16 - 15)), FOUR),
    ],
)
def test_valid_lines(line: bytes, endpoints: ConnectionAddresses | None) -> None:
    assert parse(line) == parse(line + b"GET / HTTP/1.1\r\n\r\n") == ProxyLine(len(line), endpoints)
    for cut in range(len(line)):
        assert parse(line[:cut]) is None, line[:cut]


@pytest.mark.parametrize(
    "line",
    [render("v1", FOUR), render("v1", SIX), render("v1", None), render("v2", FOUR), render("v2", SIX)]
    + [render("v2", None), header(IPV4 + b"\x04\x00\x02ab"), b"PROXY UNKNOWN x\r\n"],
)
def test_no_byte_behind_the_line_is_taken(line: bytes) -> None:
    wire, taken = line + b"\x16\x03\x01", b""
    while parse(taken) is None:
        more = needed(taken)
        assert more > 0
        taken += wire[len(taken) : len(taken) + more]
    assert taken == line


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\r\n\r\nX",
        b"PROXY\r\n",
        b"PROXY  TCP4 192.0.2.1 10.0.0.1 54321 443\r\n",
        b"PROXY TCP5 192.0.2.1 10.0.0.1 54321 443\r\n",
        b"proxy TCP4 192.0.2.1 10.0.0.1 54321 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 54321 443\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 54321 443 \r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 54321 65536\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 054321 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 5432 0443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 -1 443\r\n",
        b"PROXY TCP4 192.0.2.01 10.0.0.1 54321 443\r\n",
        b"PROXY TCP4 192.0.2 10.0.0.1 54321 443\r\n",
        b"PROXY TCP4 ::1 ::1 54321 443\r\n",
        b"PROXY TCP6 192.0.2.1 10.0.0.1 54321 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 54321 443\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY UNKNOWN " + b"x" * MAX_V1,
        header(IPV4, 0x11),  # version 1 in version 2's clothes
        header(IPV4, 0x22),
        header(IPV4, 0x21, 0x12),  # UDP
        header(IPV4[:-1]),
        header(IPV4, 0x21, 0x21),  # too short for IPv6
        header(IPV4 + b"\x04"),
        header(IPV4 + b"\x04\x00"),
        header(IPV4 + b"\x04\x00\x01"),
        header(IPV4 + b"\x04\x00\x05abcd"),
        header(IPV4 + b"\x03\x00\x04abcd"),  # not its checksum
        header(IPV4 + b"\x03\x00\x00"),
        header(bytes(MAX_SIZE - 15)),
        SIGNATURE + b"\x21\x11\xff\xff",  # refused before so much has come
    ],
)
def test_invalid_lines(line: bytes) -> None:
    with pytest.raises(BadProxyLine):
        parse(line)


def test_a_checksum_is_checked() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4 and everybody else's check value
    blank = header(IPV4 + b"\x03\x00\x04\x00\x00\x00\x00\x04\x00\x01x")
    right = blank.replace(b"\x03\x00\x04\x00\x00\x00\x00", b"\x03\x00\x04" + crc32c(blank).to_bytes(4, "big"))
    assert parse(right) == ProxyLine(len(right), FOUR)
    with pytest.raises(BadProxyLine, match="checksum"):
        parse(right[:-1] + b"y")


def test_rendered_lines() -> None:
    assert render("v1", FOUR) == b"PROXY TCP4 192.0.2.1 10.0.0.1 54321 443\r\n"
    assert render("v1", None) == b"PROXY UNKNOWN\r\n"
    assert render("v2", FOUR) == header(IPV4)
    assert render("v2", None) == header(b"", 0x20, 0)


ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
PORTS = st.integers(0, 65535)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ADDRESSES, PORTS, PORTS, st.sampled_from(["v1", "v2"]))
def test_rendered_lines_can_be_parsed(
    addresses: tuple[object, object], source: int, destination: int, version: str
) -> None:
    endpoints = ConnectionAddresses(str(addresses[0]), source, str(addresses[1]), destination)
    line = render(version, endpoints)
    assert len(line) <= MAX_V1
    assert parse(line + b"GET") == ProxyLine(len(line), endpoints)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, header(IPV4)[:16]]), st.binary(max_size=600)
)
def test_any_bytes_are_decided_within_bounds(start: bytes, rest: bytes) -> None:
    """Byte by byte ends like the whole, and never waits for more than the bound."""
    data = start + rest
    try:
        whole: object = parse(data)
    except BadProxyLine:
        whole = "bad"
    if len(data) >= MAX_SIZE:
        assert whole is not None
    pieces: object = None
    for end in range(len(data) + 1):
        try:
            pieces = parse(data[:end])
        except BadProxyLine:
            pieces = "bad"
        if pieces is not None:
            break
    assert pieces == whole
