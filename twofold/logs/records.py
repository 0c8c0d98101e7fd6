"""Formats the records of the access log and the predict log.

Records are JSON lines in the envelope of OCI's Logging service, according to the contract of Data Science
model deployments.  Touches nothing: the log writer writes the lines.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted

# time of the response (Unix time in ns), "<METHOD> <path> <HTTP version>", status, predict() in us,
# request id, bytes of the response, us from the last byte of the head to the response
AccessRecord = tuple[int, "bytes | str", int, int, bytes, int, int]

TYPE = "com.oraclecloud.datascience.modeldeployment."
MAX_MESSAGE = 1024  # characters of a request line that are logged
REMEMBERED_MESSAGES = 512
REMEMBERED_NUMBERS = 4096

# A lookup replaces the rendering of a number, which costs a third of a microsecond.
_LAST_DIGITS = tuple(b"%02x" % byte for byte in range(256))


def record_ids() -> str:
    """The first 24 of a UUID's 36 characters, random; a process appends a counter of 12 hex digits.

    Version and variant are those of a random UUID (RFC 9562, 5.4).  74 random bits distinguish processes.
    """
    digits = os.urandom(10).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{'89ab'[int(digits[15], 16) % 4]}{digits[16:19]}-"


def stamp(milliseconds: int) -> str:
    """RFC 3339 in UTC, from Unix time in milliseconds."""
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _Rendered(dict[int, bytes]):
    """A cache of rendered numbers."""

    def __init__(self, render: Callable[[int], bytes]) -> None:
        self._render = render

    def __missing__(self, number: int) -> bytes:
        if len(self) >= REMEMBERED_NUMBERS:
            self.clear()
        text = self[number] = self._render(number)
        return text


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds // 1000}.{microseconds % 1000:03d}"


class AccessLog:
    """Formats batches of access records as lines, outside the request path."""

    __slots__ = ("_ends", "_head", "_messages", "_next", "_predicts", "_statuses", "_tail", "_totals")

    def __init__(self, source: str) -> None:
        self._head = f'{{"id":"{record_ids()}'.encode()
        self._tail = f'"type":"{TYPE}access","source":{quoted(source)},"specversion":"1.0","data":'
        self._next = 1
        self._messages: dict[bytes | str, bytes] = {}
        self._predicts = _Rendered(lambda spent: f'{_milliseconds(spent)},"opcRequestId":"'.encode())
        self._statuses = _Rendered(lambda status: f'","status":{status},"totalLatency":'.encode())
        self._totals = _Rendered(lambda spent: _milliseconds(spent).encode())
        self._ends = _Rendered(lambda sent: f',"bytes":{sent}}}}}\n'.encode())

    def format(self, batch: list[AccessRecord]) -> bytes:
        """One line for each record; latencies in ms.

        Times, messages and numbers repeat within a batch: lines are joined from cached pieces, and every
        byte is copied once.
        """
        number, messages, last_digits = self._next, self._messages, _LAST_DIGITS
        predicts, statuses, totals, ends = self._predicts, self._statuses, self._totals, self._ends
        head = b"%b%010x" % (self._head, number >> 8)
        rendered, times = -1, b""
        pieces: list[bytes] = []
        for at, message, status, predict_us, request_id, sent, total_us in batch:
            millisecond = at // 1000000
            if millisecond != rendered:
                rendered, times = millisecond, self._times(millisecond)
            pieces += (
                head, last_digits[number & 255], times, messages.get(message) or self._message(message),
                predicts[predict_us], request_id, statuses[status], totals[total_us], ends[sent],
            )  # fmt: skip
            number += 1
            if not number & 255:
                head = b"%b%010x" % (self._head, number >> 8)
        self._next = number
        return b"".join(pieces)

    def _times(self, millisecond: int) -> bytes:
        moment = stamp(millisecond)
        return f'","time":"{moment}",{self._tail}{{"logEmissionTime":"{moment}","message":'.encode()

    def _message(self, message: bytes | str) -> bytes:
        """The JSON of a request line, cut to MAX_MESSAGE characters; the cache is bounded."""
        text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
        rendered = f'{quoted(text[:MAX_MESSAGE])},"modelLatency":'.encode()
        if len(text) <= MAX_MESSAGE:
            if len(self._messages) >= REMEMBERED_MESSAGES:
                self._messages.clear()
            self._messages[message] = rendered
        return rendered


class PredictLog:
    """Formats raw text, which native code wrote to file descriptors, as records of the predict log."""

    __slots__ = ("_head", "_next", "_tail")

    def __init__(self, source: str) -> None:
        self._head = '{"id":"' + record_ids()
        self._tail = f'"type":"{TYPE}predict","source":{quoted(source)},"specversion":"1.0","data":'
        self._next = itertools.count(1)

    def format(self, text: bytes, replica: int) -> bytes:
        """One line; `replica` is the index of the replica that wrote the text, -1 if unknown."""
        moment = stamp(time.time_ns() // 1000000)
        message = quoted(text.decode("utf-8", "replace"))
        origin = f',"replica":{replica}' if replica >= 0 else ""
        return (
            f'{self._head}{next(self._next):012x}","time":"{moment}",{self._tail}{{"logEmissionTime":"{moment}"'
            f',"message":{message},"opcRequestId":"","stream":"native"{origin}}}}}\n'
        ).encode("ascii")
