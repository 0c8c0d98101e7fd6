"""Forwarding of header fields, and the fields that describe a request's origin.

Pure.  Fields are pairs of bytes, names in lower case, as twofold.wire.request_head parses them.

Removed (RFC 9110, 7.6.1): hop-by-hop fields, and the fields that Connection nominates, except PROTECTED ones.
Fields that state the client's address, host, scheme or path are removed unless the peer is trusted.  The
Forwarded field is never passed on: X-Forwarded carries the same facts, and the two could contradict each
other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from twofold.net.networks import Networks, canonical
from twofold.wire.request_head import RequestHead

Fields = Iterable[tuple[bytes, bytes]]

# Kinds of fields: copied, rewritten here, copied from trusted peers, removed, copied if unambiguous.
PLAIN, HANDLED, CLAIM, REMOVED, DOUBTFUL = range(5)

MAX_HOPS = 16  # entries in Via; more indicate a loop through proxies that hide their names

# RFC 9110, 7.6.1. Proxy-Connection etc. have the prefix proxy-. CGI would turn Proxy into HTTP_PROXY.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"http2-settings", b"proxy")
)
# Request fields that are rewritten here or written by the proxy.
_WRITTEN = frozenset(
    (b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
    + (b"content-length", b"opc-request-id", b"expect", b"trailer", b"forwarded")
)
_NOT_COPIED = HOP_BY_HOP | _WRITTEN
# Fields that Connection cannot remove, because they determine the meaning of a request.
PROTECTED = frozenset(
    (b"host", b"content-length", b"authorization", b"content-type", b"content-encoding", b"cookie")
    + (b"opc-request-id", b"idempotency-key", b"x-idempotency-key")
)
# Set by proxies to describe clients; some frameworks route by x-original-url and x-rewrite-url.
_CLAIMS = frozenset(
    (b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip")
    + (b"x-original-forwarded-for", b"x-original-host", b"x-original-url", b"x-rewrite-url")
)
_CLAIMED = b"x-forwarded-"
_REMOVED = (b"proxy-", b"x-twofold-")  # hop-by-hop; reserved for Twofold's own processes
_SCHEME = re.compile(rb"https?")


@dataclass(frozen=True, slots=True)
class Hops:
    """The identity of this load balancer in Via, and the peers that it trusts."""

    pseudonym: bytes  # in Via
    scheme: bytes  # of the listeners that are not Unix sockets
    trusted: Networks


def upstream_fields(head: RequestHead, peer: str, hops: Hops) -> bytes:
    """The field lines for an instance, without opc-request-id and content-length, which the proxy adds.

    `peer`: the client's address; empty on a Unix socket.
    """
    trusted = peer in hops.trusted
    handled: dict[bytes, list[bytes]] = {}
    copied: list[tuple[bytes, bytes]] = []
    doubtful = False
    for field in head.headers:
        kind = _kind(field[0])
        if kind == HANDLED:
            handled.setdefault(field[0], []).append(field[1])
        elif kind == PLAIN or (kind == CLAIM and trusted):
            copied.append(field)
        elif kind == DOUBTFUL:
            doubtful = True
            copied.append(field)
    dropped = _nominated(handled[b"connection"]) if b"connection" in handled else frozenset()
    if doubtful:
        dropped |= _twins(head.headers, dropped)
    lines = [b"%b: %b\r\n" % field for field in copied if field[0] not in dropped]
    if b"te" in handled and _takes_trailers(handled[b"te"]):
        lines.append(b"te: trailers\r\nconnection: te\r\n")  # RFC 9110, 10.1.4: TE requires Connection
    origin = _origin(handled, peer, hops, trusted)
    via = b", ".join([*handled.get(b"via", ()), b"%d.%d %b" % (*head.version, hops.pseudonym)])
    host = handled[b"host"][0] if b"host" in handled else _authority(head.target)
    return b"host: %b\r\n%b%bvia: %b\r\n" % (host, b"".join(lines), origin, via)


def origin_form(target: bytes) -> bytes:
    """The target's path and query, without the scheme and host of an absolute form (RFC 9112, 3.2.1)."""
    if target.startswith((b"/", b"*")):
        return target
    behind = target.partition(b"://")[2]
    begin = next((at for at, byte in enumerate(behind) if byte in b"/?"), len(behind))
    return behind[begin:] if behind[begin : begin + 1] == b"/" else b"/" + behind[begin:]


def answer_fields(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The end-to-end fields of a response.

    Content-Length and Trailer are kept; the caller, which frames the body, decides about them.
    """
    fields = tuple(fields)
    named = nominated(fields)
    return [
        field
        for field in fields
        if field[0] not in HOP_BY_HOP and field[0] not in named and not field[0].startswith(_REMOVED)
    ]


def nominated(fields: Fields) -> frozenset[bytes]:
    """The names of fields that Connection nominates as hop-by-hop, without PROTECTED ones."""
    return _nominated([value for name, value in fields if name == b"connection"])


def loops(head: RequestHead, hops: Hops) -> bool:
    """Whether Via contains this load balancer, or MAX_HOPS entries."""
    entries = [entry for name, value in head.headers if name == b"via" for entry in value.split(b",")]
    # RFC 9110, 7.6.3: received-protocol, blanks, received-by, and perhaps a comment
    return len(entries) >= MAX_HOPS or any(hops.pseudonym in entry.split()[1:2] for entry in entries)


def client_address(head: RequestHead, peer: str, hops: Hops) -> str:
    """The client's address: the last address of the X-Forwarded-For chain that is not trusted.

    For limits by caller. The search ends before an entry that is not an address.
    """
    if peer not in hops.trusted:
        return peer
    chain = [
        entry for name, value in head.headers if name == b"x-forwarded-for" for entry in value.split(b",")
    ]
    found = peer
    for entry in reversed(chain):
        address = canonical(entry.strip().decode("latin-1"))
        if address is None:
            break
        found = str(address)
        if found not in hops.trusted:
            break
    return found


def _origin(handled: dict[bytes, list[bytes]], peer: str, hops: Hops, trusted: bool) -> bytes:
    said = handled if trusted else {}
    chain = [value for value in (*said.get(b"x-forwarded-for", ()), _written(peer)) if value]
    scheme = said.get(b"x-forwarded-proto", [])
    if len(scheme) != 1 or not _SCHEME.fullmatch(scheme[0].lower()):
        scheme = [hops.scheme if peer else b"http"]
    host = said.get(b"x-forwarded-host", [])
    if len(host) != 1:
        host = handled.get(b"host", [])
    lines = b"x-forwarded-for: %b\r\n" % b", ".join(chain) if chain else b""
    lines += b"x-forwarded-proto: %b\r\n" % scheme[0]
    return lines + b"x-forwarded-host: %b\r\n" % host[0] if host else lines


def _authority(target: bytes) -> bytes:
    """The host for an HTTP/1.0 request without Host, which HTTP/1.1 requires."""
    if target.startswith((b"/", b"*")):
        return b"localhost"
    return target.split(b"/", 3)[2].partition(b"?")[0]


def _nominated(values: list[bytes]) -> frozenset[bytes]:
    options = b",".join(values).lower().split(b",")
    return frozenset(option.strip(b" \t") for option in options) - PROTECTED


@lru_cache(maxsize=1024)
def _kind(name: bytes) -> int:
    """The kind of a field, cached because the same names recur."""
    if name in _NOT_COPIED:
        return HANDLED
    if name.startswith(_REMOVED):
        return REMOVED
    if name.startswith(_CLAIMED) or name in _CLAIMS:
        return CLAIM
    return DOUBTFUL if b"_" in name else PLAIN


@lru_cache(maxsize=1024)
def _written(peer: str) -> bytes:
    address = canonical(peer)
    return str(address).encode() if address is not None else b""


def _twins(fields: Fields, named: frozenset[bytes]) -> set[bytes]:
    """Names with an underscore that CGI or WSGI could confuse with another field.

    Unambiguous names are legal: the contract itself defines model_name.
    """
    variants: dict[bytes, set[bytes]] = {}
    for name, _ in fields:
        variants.setdefault(name.replace(b"_", b"-"), set()).add(name)
    ambiguous = (
        same
        for plain, same in variants.items()
        if len(same) > 1 or plain in PROTECTED or plain in named or _kind(plain) != PLAIN
    )
    return {name for same in ambiguous for name in same if b"_" in name}


def _takes_trailers(values: list[bytes]) -> bool:
    return any(
        part.partition(b";")[0].strip(b" \t") == b"trailers"
        for value in values
        for part in value.lower().split(b",")
    )
