"""Bytes of answers: status line, fields, Server-Timing.

Pure; the time comes in through refresh().  Whatever is the
same for a second is formatted once a second, so an answer is one join.
"""

from __future__ import annotations

from email.utils import formatdate

from twofold.wire.refusal import Refusal
from twofold.wire.request_head import REASONS

NO_TIMING = b"queue;dur=0, predict;dur=0, encode;dur=0"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
KNOWN_MILLIS = 4096  # microseconds for which the text is ready
MILLIS = [b"%.3f" % (us / 1000) for us in range(KNOWN_MILLIS)]
# An answer is one join of ready pieces: that costs half of what formatting does.
QUEUE = [millis + b", predict;dur=" for millis in MILLIS]
PREDICT = [millis + b", encode;dur=" for millis in MILLIS]
ENCODE = [millis + b"\r\nopc-request-id: " for millis in MILLIS]
KNOWN_LENGTHS = 2048
LENGTHS = [b"\r\ncontent-length: %d\r\n\r\n" % size for size in range(KNOWN_LENGTHS)]


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


def body_size(response: bytes) -> int:
    """Bytes of the body in a whole response. Raises ValueError if its head does not end."""
    return len(response) - response.index(b"\r\n\r\n") - 4


class Responses:
    """Renders the answers of one front."""

    def __init__(self) -> None:
        self.refresh(0.0)

    def refresh(self, unix_s: float) -> None:
        """Called once a second with Unix time: the Date field (RFC 9110, 6.6.1)."""
        self._date = date = formatdate(unix_s, usegmt=True).encode()
        self._ok = (
            b"HTTP/1.1 200 OK\r\nserver: twofold\r\ndate: " + date + b"\r\n"
            b"content-type: application/json\r\nx-content-type-options: nosniff\r\n"
            b"server-timing: queue;dur="
        )

    def head(self, spent_us: tuple[int, int, int], request_id: bytes, fields: bytes, size: int) -> bytes:
        """The head of a 200 whose body has `size` bytes.

        `spent_us` is the times in queue, predict and encoding; `fields` are whole lines, or nothing.
        """
        return (
            b"%b%b, predict;dur=%b, encode;dur=%b\r\nopc-request-id: %b\r\n%bcontent-length: %d\r\n\r\n"
        ) % (
            self._ok,
            millis(spent_us[0]),
            millis(spent_us[1]),
            millis(spent_us[2]),
            request_id,
            fields,
            size,
        )

    def whole(self, queue_us: int, predict_us: int, encode_us: int, request_id: bytes, body: bytes) -> bytes:
        """A whole 200 without further fields: the hot path's `head`, and the body."""
        size = len(body)
        # KNOWN_MILLIS is a power of two, so the union is below it if each of them is.
        if queue_us | predict_us | encode_us >= KNOWN_MILLIS or size >= KNOWN_LENGTHS:
            return self.head((queue_us, predict_us, encode_us), request_id, b"", size) + body
        return b"".join((
            self._ok, QUEUE[queue_us], PREDICT[predict_us], ENCODE[encode_us],
            request_id, LENGTHS[size], body,
        ))  # fmt: skip

    def error(
        self, refusal: Refusal, request_id: bytes, connection: bytes = b"", server_timing: bytes = NO_TIMING
    ) -> bytes:
        """A whole error answer; `server_timing` is its field of that name."""
        body = refusal.body()
        return (
            b"HTTP/1.1 %d %b\r\nserver: twofold\r\ndate: %b\r\ncontent-type: application/json\r\n"
            b"x-content-type-options: nosniff\r\nserver-timing: %b\r\nopc-request-id: %b\r\n"
            b"%b%bcontent-length: %d\r\n\r\n%b"
        ) % (
            refusal.status, REASONS[refusal.status], self._date, server_timing, request_id,
            refusal.headers, connection, len(body), body,
        )  # fmt: skip
