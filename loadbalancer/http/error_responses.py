"""The load balancer's own error responses.

Pure.  Bodies are the contract's `{"code", "message"}`; messages name the relevant setting.
"""

from __future__ import annotations

from twofold.wire.refusal import Refusal, try_later
from twofold.wire.request_head import REASONS

NOT_FOUND = Refusal(404, "NotAuthorizedOrNotFound", "no such model deployment, or not for this caller")
BAD_ANSWER = Refusal(502, "BadGateway", "the instance broke off or sent no valid HTTP")
CONNECTION_LOST = Refusal(502, "BadGateway", "the instance closed the connection before it answered")
TOO_LATE = Refusal(504, "GatewayTimeout", "the instance did not answer within predict_timeout")
CONNECTION_LIMITED = Refusal(503, "ServiceUnavailable", "too many connections; max_connections limits them")


def bandwidth(seconds: int) -> Refusal:
    """429 with the message of the contract (section 2.4): callers distinguish the limits by the message."""
    return try_later(
        429, "TooManyRequests", "LB bandwidth limit exceeded; raise bandwidth_mbps or send less", seconds
    )


def request_rate(seconds: int) -> Refusal:
    return try_later(
        429, "TooManyRequests", "Tenancy request-rate limit exceeded; see requests_per_second", seconds
    )


def caller_limit(seconds: int) -> Refusal:
    return try_later(
        429, "TooManyRequests", "this caller's limit is exceeded; see caller_bandwidth_mbps", seconds
    )


def queue_full(seconds: int) -> Refusal:
    return try_later(503, "ServiceUnavailable", "no instance was free in time; the queue is full", seconds)


def down(seconds: int = 1) -> Refusal:
    return try_later(503, "ServiceUnavailable", "no instance can be reached", seconds)


def answer(refusal: Refusal, request_id: bytes, date: bytes, connection: bytes) -> bytes:
    """The complete response; `connection` is a Connection field line or empty."""
    body = refusal.body()
    return (
        b"HTTP/1.1 %d %b\r\nserver: twofold\r\ndate: %b\r\ncontent-type: application/json\r\n"
        b"x-content-type-options: nosniff\r\nopc-request-id: %b\r\n%b%bcontent-length: %d\r\n\r\n%b"
    ) % (
        refusal.status, REASONS[refusal.status], date, request_id,
        refusal.headers, connection, len(body), body,
    )  # fmt: skip
