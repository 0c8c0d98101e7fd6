"""Bytes of answers: status line, fields, Server-Timing.

Pure; the time comes in through refresh().  Whatever is the
same for a second is formatted once a second, so an answer is one `%` and one join.
"""

from __future__ import annotations

from email.utils import formatdate

from server.http1 import REASONS
from server.plan import Refusal

NO_TIMING = b"queue;dur=0, predict;dur=0, encode;dur=0"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KNOWN_MILLIS = 8192  # microseconds for which the text is ready
MILLIS = [b"%.3f" % (us / 1000) for us in range(KNOWN_MILLIS)]


def millis(us: int) -> bytes:
    """Microseconds as milliseconds with three decimals."""
    return MILLIS[us] if us < KNOWN_MILLIS else b"%.3f" % (us / 1000)


def timing(queue_us: int, predict_us: int, encode_us: int) -> bytes:
    """The value of Server-Timing (W3C Server Timing: durations in milliseconds)."""
    return b"queue;dur=%b, predict;dur=%b, encode;dur=%b" % (
        millis(queue_us),
        millis(predict_us),
        millis(encode_us),
    )


class Answers:
    """Renders the answers of one front."""

    def __init__(self) -> None:
        self.refresh(0.0)

    def refresh(self, now: float) -> None:
        """Called once a second with the wall clock (seconds): the Date field (RFC 9110, 6.6.1)."""
        self._date = date = formatdate(now, usegmt=True).encode()
        self.ok = (
            b"HTTP/1.1 200 OK\r\nserver: twofold\r\ndate: " + date + b"\r\n"
            b"content-type: application/json\r\nx-content-type-options: nosniff\r\n"
            b"server-timing: queue;dur=%b, predict;dur=%b, encode;dur=%b\r\n"
            b"opc-request-id: %b\r\n%bcontent-length: %d\r\n\r\n"
        )

    def error(
        self, refusal: Refusal, request_id: bytes, connection: bytes = b"", spent: bytes = NO_TIMING
    ) -> bytes:
        """A whole error answer; `spent` is its Server-Timing."""
        body = refusal.body()
        return (
            b"HTTP/1.1 %d %b\r\nserver: twofold\r\ndate: %b\r\ncontent-type: application/json\r\n"
            b"x-content-type-options: nosniff\r\nserver-timing: %b\r\nopc-request-id: %b\r\n"
            b"%b%bcontent-length: %d\r\n\r\n%b"
        ) % (
            refusal.status, REASONS[refusal.status], self._date, spent, request_id,
            refusal.headers, connection, len(body), body,
        )  # fmt: skip
