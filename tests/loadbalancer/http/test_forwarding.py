"""What passes to an instance and back: nothing of one connection, all that the message means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from twofold.loadbalancer.access import identity
from twofold.loadbalancer.config import AccessSettings, Config, ListenSettings
from twofold.loadbalancer.http import forwarding
from twofold.loadbalancer.http.forwarding import (
    MAX_HOPS,
    Hops,
    answer_fields,
    client_address,
    loops,
    upstream_fields,
)
from twofold.net.networks import Networks
from twofold.wire.request_head import BadRequest, RequestHead, parse_head

HOPS = Hops(b"lb-1", b"https", Networks(("10.0.0.0/8",)))
STRANGER, PROXY = "192.0.2.1", "10.0.0.1"
ADDED = {b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}

Field = tuple[bytes, bytes]


def request(*fields: bytes, start: bytes = b"GET /predict HTTP/1.1", host: bytes = b"host: h") -> RequestHead:
    return parse_head(b"\r\n".join([start, *([host] if host else []), *fields, b"", b""]))


def sent(head: RequestHead, peer: str = STRANGER, hops: Hops = HOPS) -> list[Field]:
    """The fields that arrive at the instance, as a strict parser reads them."""
    return list(parse_head(b"GET / HTTP/1.1\r\n%b\r\n" % upstream_fields(head, peer, hops)).headers)


def passed(head: RequestHead, peer: str = STRANGER) -> list[Field]:
    return [field for field in sent(head, peer) if field[0] not in ADDED]


def test_a_plain_request() -> None:
    head = request(b"Accept: */*", b"Content-Type: application/json", host=b"Host: models.example:8443")
    assert sent(head) == [
        (b"host", b"models.example:8443"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"models.example:8443"),
        (b"via", b"1.1 lb-1"),
    ]


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: keep-alive",
        b"Connection: close, X-A\r\nX-A: 1",
        b"Connection: close\r\nConnection: ,\tx-a ,\r\nX-A: 1",
        b"Connection: X-A\r\nX_A: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"Proxy-Authorization: Basic eA==",
        b"Proxy-Authenticate: Basic",
        b"Proxy-Whatever: 1",
        b"Proxy: http://evil",
        b"TE: gzip",
        b"Trailer: X-Sum",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings",
        b"Expect: 100-continue",
        b"opc-request-id: abc",  # the proxy writes it, with or without one from the client
        b"Forwarded: for=1.2.3.4",
        b"X-Forwarded-Port: 1",
        b"X-Forwarded-Prefix: /admin",
        b"X_Forwarded_For: 1.2.3.4",
        b"X-Real-IP: 1.2.3.4",
        b"X_Real-IP: 1.2.3.4",
        b"X-Original-URL: /admin",
        b"X-Twofold-Anything: 1",
        b"X_Twofold_Anything: 1",
        b"Proxy_Authorization: 1",
        b"Idempotency_Key: 1",
        b"X-A_B: 1\r\nX_A-B: 2",
    ],
)
def test_forwarding_fields_of_untrusted_peers_are_dropped(field: bytes) -> None:
    assert passed(request(field)) == []
    assert passed(request(field, b"accept: a")) == [(b"accept", b"a")]


def test_framing_fields_are_written_by_the_proxy() -> None:
    head = request(b"Content-Length: 5", start=b"POST /predict HTTP/1.1")
    assert passed(head) == []
    head = request(b"Transfer-Encoding: chunked", start=b"POST /predict HTTP/1.1")
    assert passed(head) == []


@pytest.mark.parametrize(
    "name", sorted(forwarding.PROTECTED - {b"host", b"content-length", b"opc-request-id"})
)
def test_connection_cannot_name_fields_that_must_stay(name: bytes) -> None:
    head = request(b"%b: x" % name, b"Connection: close, host, content-length, via, " + name)
    assert passed(head) == [(name, b"x")]
    assert dict(sent(head))[b"host"] == b"h" and dict(sent(head))[b"via"] == b"1.1 lb-1"


def test_te_trailers_is_written_by_the_proxy() -> None:
    expected = [(b"te", b"trailers"), (b"connection", b"te")]
    for field in (b"TE: trailers", b"TE: gzip;q=0.5, Trailers", b"TE: gzip\r\nTE: trailers"):
        assert passed(request(field, b"Connection: te, close")) == expected


def test_names_with_underscores_pass_unless_they_imitate_another() -> None:
    fields = [(b"model_name", b"iris"), (b"model_version", b"1"), (b"model-other", b"2")]
    assert passed(request(*(b"%b: %b" % field for field in fields))) == fields


def test_a_trusted_peer_is_believed() -> None:
    head = request(
        b"X-Forwarded-For: 198.51.100.7, 10.9.9.9", b"X-Forwarded-For: 10.9.9.8", b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: front.example", b"X-Real-IP: 198.51.100.7", b"X-Forwarded-Port: 80",
        b"X_Real_IP: 1.2.3.4", b"Forwarded: for=1.2.3.4", b"Proxy-Authorization: x",
    )  # fmt: skip
    assert sent(head, PROXY) == [
        (b"host", b"h"),
        (b"x-real-ip", b"198.51.100.7"),
        (b"x-forwarded-port", b"80"),
        (b"x-forwarded-for", b"198.51.100.7, 10.9.9.9, 10.9.9.8, 10.0.0.1"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b"front.example"),
        (b"via", b"1.1 lb-1"),
    ]
    assert dict(sent(head))[b"x-forwarded-for"] == b"192.0.2.1"


@pytest.mark.parametrize("scheme", [b"x-forwarded-proto: gopher", b"x-forwarded-proto: http, https", b"a: b"])
def test_an_invalid_scheme_is_not_forwarded(scheme: bytes) -> None:
    assert dict(sent(request(scheme), PROXY))[b"x-forwarded-proto"] == b"https"


def test_clients_at_a_unix_socket_have_no_address() -> None:
    fields = dict(sent(request(b"x-forwarded-for: 1.2.3.4"), ""))
    assert b"x-forwarded-for" not in fields and fields[b"x-forwarded-proto"] == b"http"


def test_addresses_are_written_without_mapping_and_zone() -> None:
    assert dict(sent(request(), "::ffff:192.0.2.9"))[b"x-forwarded-for"] == b"192.0.2.9"
    assert dict(sent(request(), "fe80::1%eth0"))[b"x-forwarded-for"] == b"fe80::1"


def test_http_1_0_gets_the_host_that_http_1_1_needs() -> None:
    fields = dict(sent(request(start=b"GET / HTTP/1.0", host=b"")))
    assert fields[b"host"] == b"localhost" and fields[b"via"] == b"1.0 lb-1"
    assert b"x-forwarded-host" not in fields
    for target in (b"http://a.example:81/x", b"http://a.example:81?x=/y", b"http://a.example:81"):
        head = request(start=b"GET %b HTTP/1.0" % target, host=b"")
        assert dict(sent(head))[b"host"] == b"a.example:81"


# ------------------------------------------------------------------ loops


def test_a_loop_is_detected() -> None:
    head = request()
    assert not loops(head, HOPS)
    again = request(b"via: " + dict(sent(head))[b"via"])
    assert loops(again, HOPS)
    other = Hops(b"lb-2", b"http", Networks(()))
    assert not loops(again, other)
    assert dict(sent(again, STRANGER, other))[b"via"] == b"1.1 lb-1, 1.1 lb-2"
    assert loops(request(b"via: 1.0 a (lb-1), HTTP/1.1  lb-1 (comment)"), HOPS)
    assert not loops(request(b"via: 1.1 xlb-1, 1.1 lb-12, lb-1"), HOPS)


def test_a_loop_of_others_ends_too() -> None:
    head, count = request(), 0
    while not loops(head, HOPS):
        count += 1
        head = request(b"via: " + dict(sent(head, STRANGER, Hops(b"x", b"http", Networks(()))))[b"via"])
    assert count == MAX_HOPS


def test_a_pseudonym_is_kept_and_unique() -> None:
    def of(*listen: str) -> bytes:
        return identity.hops(Config(listen=ListenSettings(listen=listen))).pseudonym

    assert of("127.0.0.1:8080") == of("127.0.0.1:8080") != of("127.0.0.1:8081")
    assert re.fullmatch(rb"twofold-[0-9a-f]{12}", of("unix:/a"))


def test_scheme_and_trusted_peers_come_from_the_settings() -> None:
    hops = identity.hops(
        Config(
            listen=ListenSettings(tls_certificate="x"), access=AccessSettings(trusted_proxies=("10.0.0.0/8",))
        )
    )
    assert hops.scheme == b"https" and PROXY in hops.trusted and STRANGER not in hops.trusted
    assert identity.hops(Config()).scheme == b"http"


# ------------------------------------------------------------------ who it is


@pytest.mark.parametrize(
    ("chain", "peer", "address"),
    [
        (b"198.51.100.7", STRANGER, STRANGER),
        (b"198.51.100.7", PROXY, "198.51.100.7"),
        (b"1.1.1.1, 198.51.100.7, 10.2.2.2", PROXY, "198.51.100.7"),  # the first one is made up
        (b"10.3.3.3, 10.2.2.2", PROXY, "10.3.3.3"),
        (b"1.1.1.1, unknown, 10.2.2.2", PROXY, "10.2.2.2"),
        (b"", PROXY, PROXY),
        (b"[fd00::1]", PROXY, PROXY),
        (b"fd00::1", PROXY, "fd00::1"),
    ],
)
def test_the_clients_address(chain: bytes, peer: str, address: str) -> None:
    assert client_address(request(b"x-forwarded-for: " + chain), peer, HOPS) == address


# ------------------------------------------------------------------ answers


def test_an_answer() -> None:
    fields = (
        (b"content-type", b"application/json"), (b"connection", b"X-Hop, content-length"), (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"), (b"proxy-authenticate", b"Basic"), (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"5"),
        (b"trailer", b"x-sum"), (b"opc-request-id", b"a/b/c"), (b"www-authenticate", b"Bearer"),
        (b"x-twofold-depth", b"1"),
    )  # fmt: skip
    assert answer_fields(fields) == [
        (b"content-type", b"application/json"), (b"set-cookie", b"a"), (b"set-cookie", b"b"),
        (b"content-length", b"5"), (b"trailer", b"x-sum"), (b"opc-request-id", b"a/b/c"),
        (b"www-authenticate", b"Bearer"),
    ]  # fmt: skip


# ------------------------------------------------------------------ whatever is sent

HOP_NAMES = (
    b"connection keep-alive proxy-connection te trailer upgrade proxy-authorization proxy-authenticate proxy "
    b"http2-settings transfer-encoding"
).split()
OTHER_NAMES = (
    b"accept x-a x-b x_a x_a_b x-a-b x_a-b authorization cookie content-type content_type content-length "
    b"expect via forwarded x-forwarded-for x_forwarded_for x-forwarded-host x-real-ip x-twofold-x "
    b"opc-request-id model_name"
).split()
TOKENS = st.text("abcXYZ019-_.!~", min_size=1, max_size=6).map(str.encode)
NAMES = st.one_of(st.sampled_from(HOP_NAMES), st.sampled_from(OTHER_NAMES), TOKENS)
VALUES = st.one_of(
    st.lists(NAMES, max_size=4).map(b", ".join),
    st.sampled_from([b"chunked", b"trailers", b"100-continue", b"close", b"1.1 lb-1", b"0"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12)
    .filter(lambda text: not any(0x7F <= ord(char) < 0x80 for char in text))
    .map(lambda text: text.encode("latin-1")),
)


@st.composite
def field_lists(draw: st.DrawFn) -> list[Field]:
    """Fields, and often a Connection that names some of them."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=10))
    plain: bool = draw(st.booleans())
    connected: bool = draw(st.booleans())
    if fields and connected:
        names = [name.replace(b"_", b"-") if plain else name for name, _ in fields]
        options = draw(st.lists(st.sampled_from(names), max_size=4))
        fields.insert(draw(st.integers(0, len(fields))), (b"Connection", b", ".join(options)))
    return fields


FIELDS = field_lists()


def named_by_connection(fields: list[Field]) -> set[bytes]:
    """An independent reading of Connection, one option at a time."""
    options = set()
    for name, value in fields:
        if name == b"connection":
            options |= {
                option.decode("latin-1").strip(" \t").lower().encode("latin-1")
                for option in value.split(b",")
            }
    return options


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FIELDS, st.sampled_from([STRANGER, PROXY, ""]))
def test_only_hop_by_hop_fields_are_dropped(fields: list[Field], peer: str) -> None:
    lines = [b"%b: %b" % field for field in fields]
    try:
        head = request(*lines, start=b"POST /predict HTTP/1.1")
    except BadRequest:
        reject()
    received, arrived = list(head.headers), sent(head, peer)
    named = named_by_connection(received) - forwarding.PROTECTED
    names = {name for name, _ in received}
    for name, value in arrived:
        hop = name in HOP_NAMES or name.startswith(b"proxy")
        assert not hop or (name, value) in ((b"te", b"trailers"), (b"connection", b"te"))
        assert name in ADDED or name == b"te" or name == b"connection" or name not in named
    # What is of no connection, claims nothing and has no twin: exactly that, in its order.
    special = {*HOP_NAMES, *ADDED, *named, b"forwarded", b"expect", b"content-length", b"opc-request-id"}
    plain = [
        field
        for field in received
        if field[0] not in special
        and b"_" not in field[0]
        and not field[0].startswith((b"x-forwarded-", b"x-twofold-", b"proxy-"))
        and (peer == PROXY or field[0] != b"x-real-ip")
    ]
    kept = [
        field for field in arrived if field[0] not in ADDED | {b"te", b"connection"} and b"_" not in field[0]
    ]
    assert kept == plain
    # And no underscore could be taken for the hyphen of a field that is checked, set or removed.
    written = [name for name, _ in arrived if b"_" in name]
    for name in written:
        twin = name.replace(b"_", b"-")
        assert twin not in names | special | forwarding.PROTECTED
        assert [other.replace(b"_", b"-") for other in {*written}].count(twin) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(FIELDS)
def test_forwarding_is_idempotent(fields: list[Field]) -> None:
    """Two load balancers in a row: the second has nothing left to remove."""
    try:
        head = request(*(b"%b: %b" % field for field in fields), start=b"POST /predict HTTP/1.1")
    except BadRequest:
        reject()
    second = Hops(b"lb-2", b"https", Networks((STRANGER,)))
    once = parse_head(b"GET / HTTP/1.1\r\n%b\r\n" % upstream_fields(head, STRANGER, HOPS))
    assert passed(once, STRANGER) == passed(head, STRANGER)
    assert dict(sent(once, STRANGER, second))[b"via"].endswith(b"1.1 lb-1, 1.1 lb-2")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(FIELDS)
def test_responses_keep_end_to_end_fields(fields: list[Field]) -> None:
    fields = [(name.lower(), value.strip()) for name, value in fields]
    arrived = answer_fields(fields)
    named = named_by_connection(fields) - forwarding.PROTECTED
    assert arrived == [
        (name, value)
        for name, value in fields
        if (name not in HOP_NAMES or name == b"trailer")
        and name not in named
        and not name.startswith((b"proxy-", b"x-twofold-"))
    ]
