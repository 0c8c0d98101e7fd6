"""What to do with a request that has such a head: decided once per distinct head, then remembered.

Pure: no I/O, no clock.  Machine clients repeat their heads byte for byte, so a plan is the unit of
memory: everything that follows from the head alone is worked out here and not on the hot path.

The order of refusals on a predict route is the contract's: does it exist (404), method (405),
length (411), size (413), and only then what the body is.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.server.replica import frame
from twofold.wire import persistence
from twofold.wire.refusal import LENGTH, Refusal, too_large
from twofold.wire.request_head import RequestHead

EXPRESS = 1  # predict: slot, descriptor, answer
APPLICATION = 2  # everything else: the ASGI application
REFUSED = 3

APPLICATION_BODY = 65536  # bytes of body that a route other than predict may have


@dataclass(frozen=True, slots=True)
class RoutePlan:
    lane: int
    head: RequestHead
    kind: int
    length: int
    message: bytes  # for the access log: "POST /predict 1.1"
    connection: bytes  # the Connection field of the answer, or nothing
    close: bool
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class RouteRules:
    """The settings that a plan depends on."""

    max_body: int
    ocid: str = ""


def make_plan(head: RequestHead, rules: RouteRules) -> RoutePlan:
    """All that follows from the head alone, the refusal included where there is one."""
    refusal = _refusal(head, rules)
    predict = is_predict(head.path)
    # Without a length, what comes next may be the body all the same.
    close = persistence.closes(head, refusal is not None) or refusal is LENGTH
    return RoutePlan(
        lane=REFUSED if refusal else EXPRESS if predict else APPLICATION,
        head=head,
        kind=frame.JSON if is_json(head.content_type) else frame.BYTES,
        length=head.content_length or 0,
        message=head.line(),
        connection=persistence.connection_field(head, close),
        close=close,
        refusal=refusal,
    )


def is_predict(path: str) -> bool:
    """`/predict` or `/{ocid}/predict`."""
    return path == "/predict" or (path.endswith("/predict") and path.count("/") == 2 and path[1] != "/")


def is_json(content_type: bytes) -> bool:
    """JSON is the default: only another declared type makes the body bytes."""
    kind = content_type.partition(b";")[0].strip().lower()
    return not kind or kind == b"application/json" or kind.endswith(b"+json")


def _refusal(head: RequestHead, rules: RouteRules) -> Refusal | None:
    if not is_predict(head.path):
        if head.chunked:
            return LENGTH
        if (head.content_length or 0) > APPLICATION_BODY:
            return Refusal(413, "PayloadTooLarge", f"this route takes at most {APPLICATION_BODY} bytes")
        return None
    if rules.ocid and head.path not in ("/predict", f"/{rules.ocid}/predict"):
        return Refusal(404, "NotAuthorizedOrNotFound", "no such model deployment")
    if head.method != "POST":
        return Refusal(405, "MethodNotAllowed", "predict takes POST", b"allow: POST\r\n")
    if head.content_length is None:
        return LENGTH
    if head.content_length > rules.max_body:
        return too_large(rules.max_body)
    for name, value in head.headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            return Refusal(415, "UnsupportedMediaType", "send the body without Content-Encoding")
    return None
