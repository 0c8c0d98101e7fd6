"""The plan of a request, derived from its head alone: a refusal, or the head for the instance.

Pure.  Plans are cached by the bytes of the head, so this cost occurs once per distinct head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from twofold.loadbalancer.http import forwarding
from twofold.wire import persistence
from twofold.wire.refusal import LENGTH, Refusal, too_large
from twofold.wire.request_head import RequestHead

NEVER = math.inf  # expiry time of a plan that does not expire
SMALL_BODY = 49152  # bytes
# RFC 9110, 9.2.2
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


@dataclass(frozen=True, slots=True)
class ProxyPlan:
    head: RequestHead
    length: int  # bytes of the body
    message: bytes  # for the access log: "POST /predict 1.1"
    close: bool
    connection: bytes  # the Connection field line of responses, or empty
    plain: bool  # a response may be relayed unchanged: its framing is valid for this client
    replayable: bool  # may be sent twice (RFC 9110, 9.2.2, or it has an idempotency key)
    refusal: Refusal | None = None
    keep_until_s: float = NEVER  # Unix time at which the plan expires
    digest: bytes | None = None  # SHA-256 of the body that the signature requires; None: any body
    # The bytes of the head for an instance, by the client's address.
    heads: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def gathered(self) -> bool:
        """Whether the body is buffered before an instance is selected: it is small or must be verified."""
        return self.length <= SMALL_BODY or self.digest is not None

    @property
    def repeats(self) -> bool:
        """Whether the same head bytes in the next read may use this plan without any check."""
        small = self.length <= SMALL_BODY and self.digest is None
        return small and self.refusal is None and self.keep_until_s == NEVER and not self.head.expect_continue

    @property
    def to_head(self) -> bool:
        return self.head.method == "HEAD"

    def upstream_head(self, peer: str, hops: forwarding.Hops) -> bytes:
        """The bytes of the head for the instance, directly before the body."""
        known = self.heads.get(peer)
        if known is None:
            if len(self.heads) >= 64:
                self.heads.clear()
            self.heads[peer] = known = _render(self.head, self.length, peer, hops)
        return known


def make_plan(
    head: RequestHead, max_body: int, refusal: Refusal | None, keep_until_s: float = NEVER
) -> ProxyPlan:
    """The plan of `head`. `max_body` in bytes; `refusal`: from the authorization, or None."""
    refusal = refusal or _refusal(head, max_body)
    close = persistence.closes(head, refusal is not None)
    connection = persistence.connection_field(head, close)
    return ProxyPlan(
        head=head,
        length=head.content_length or 0,
        message=head.line(),
        close=close,
        connection=connection,
        plain=not connection and head.method != "HEAD",
        replayable=head.method in IDEMPOTENT
        or any(name in (b"idempotency-key", b"x-idempotency-key") for name, _ in head.headers),
        refusal=refusal,
        keep_until_s=keep_until_s,
    )


def _refusal(head: RequestHead, max_body: int) -> Refusal | None:
    if head.chunked or (head.content_length is None and head.method in ("POST", "PUT", "PATCH")):
        return LENGTH
    if (head.content_length or 0) > max_body:
        return too_large(max_body)
    return None


def _render(head: RequestHead, length: int, peer: str, hops: forwarding.Hops) -> bytes:
    # RFC 9112, 3.2: a request to an origin server uses the origin form.
    lines = b"%b %b HTTP/1.1\r\n" % (head.method.encode(), forwarding.origin_form(head.target))
    fields = forwarding.upstream_fields(head, peer, hops)
    request_id = b"opc-request-id: %b\r\n" % head.request_id if head.request_id else b""
    framing = b"content-length: %d\r\n" % length if head.content_length is not None else b""
    return b"%b%b%b%b\r\n" % (lines, fields, request_id, framing)
