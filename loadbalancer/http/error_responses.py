"""What the load balancer itself says to a caller whom no instance will answer.

Pure.  Bodies are the contract's `{"code", "message"}`; messages name the setting that helps.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.wire.request_head import REASONS, error_body


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str
    message: str
    headers: bytes = b""  # whole lines

    @property
    def faulty(self) -> bool:
        """The request is at fault, and would be at any other time."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


NOT_FOUND = Refusal(404, "NotAuthorizedOrNotFound", "no such model deployment, or not for this caller")
LENGTH = Refusal(411, "LengthRequired", "send a Content-Length; chunked bodies are not accepted")
BAD_ANSWER = Refusal(502, "BadGateway", "the instance broke off or sent no valid HTTP")
CONNECTION_LOST = Refusal(502, "BadGateway", "the instance closed the connection before it answered")
TOO_LATE = Refusal(504, "GatewayTimeout", "the instance did not answer within predict_timeout")
LATE_HEAD = Refusal(408, "RequestTimeout", "the head did not arrive in time")
LATE_BODY = Refusal(408, "RequestTimeout", "the body did not arrive in time")
CONNECTION_LIMITED = Refusal(503, "ServiceUnavailable", "too many connections; max_connections limits them")


def too_large(limit: int) -> Refusal:
    return Refusal(413, "PayloadTooLarge", f"the body may have at most {limit} bytes")


def bandwidth(seconds: int) -> Refusal:
    """429, in the contract's words (section 2.4): callers tell the two limits apart by the message."""
    return _try_later(
        429, "TooManyRequests", "LB bandwidth limit exceeded; raise bandwidth_mbps or send less", seconds
    )


def request_rate(seconds: int) -> Refusal:
    return _try_later(
        429, "TooManyRequests", "Tenancy request-rate limit exceeded; see requests_per_second", seconds
    )


def caller_limit(seconds: int) -> Refusal:
    return _try_later(
        429, "TooManyRequests", "this caller's limit is exceeded; see caller_bandwidth_mbps", seconds
    )


def queue_full(seconds: int) -> Refusal:
    return _try_later(503, "ServiceUnavailable", "no instance was free in time; the queue is full", seconds)


def down(seconds: int = 1) -> Refusal:
    return _try_later(503, "ServiceUnavailable", "no instance can be reached", seconds)


def _try_later(status: int, code: str, message: str, seconds: int) -> Refusal:
    return Refusal(status, code, message, b"retry-after: %d\r\n" % seconds)


def answer(refusal: Refusal, request_id: bytes, date: bytes, connection: bytes) -> bytes:
    """The whole answer; `connection` is a Connection field or nothing."""
    body = error_body(refusal.code, refusal.message)
    return (
        b"HTTP/1.1 %d %b\r\nserver: twofold\r\ndate: %b\r\ncontent-type: application/json\r\n"
        b"x-content-type-options: nosniff\r\nopc-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n%b"
    ) % (
        refusal.status, REASONS[refusal.status], date, request_id,
        refusal.headers, connection, len(body), body,
    )  # fmt: skip
