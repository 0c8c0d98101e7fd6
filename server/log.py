"""What the instance writes down: records of the access and predict logs, and a line for the operator.

The records are JSON lines in the envelope of OCI's Logging service, as the contract of Data Science
model deployments has it.  Making them is arithmetic on strings; `say` alone writes, to stderr.
"""

from __future__ import annotations

import functools
import itertools
import os
import select
import stat
import sys
import time
from json.encoder import encode_basestring_ascii as quoted

# time of the answer (Unix time in ns), "<METHOD> <path> <HTTP version>", status, predict() in us,
# the request's id, bytes of the answer's body, us from the head's last byte to the answer
AccessRecord = tuple[int, "bytes | str", int, int, bytes, int, int]

TYPE = "com.oraclecloud.datascience.modeldeployment."
MAX_MESSAGE = 1024  # characters of a request line that are logged
REMEMBERED_MESSAGES = 512
MAX_SAY = 4096  # bytes; PIPE_BUF, so that lines of several processes do not mix

# Rendering a float or a hexadecimal number costs a third of a microsecond; looking it up, nothing.
_FRACTIONS = tuple(f".{thousandth:03d}" for thousandth in range(1000))
_BELOW_ONE = tuple("0" + fraction for fraction in _FRACTIONS)
_LAST_DIGITS = tuple(f"{byte:02x}" for byte in range(256))


def record_ids() -> str:
    """The first 24 of a UUID's 36 characters, random; a process appends a counter of 12 hex digits.

    Version and variant say "random" (RFC 9562, 5.4).  74 random bits tell processes apart.
    """
    digits = os.urandom(10).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{'89ab'[int(digits[15], 16) % 4]}{digits[16:19]}-"


def stamp(milliseconds: int) -> str:
    """RFC 3339 in UTC, from Unix time in milliseconds."""
    return f"{_second(milliseconds // 1000)}{_FRACTIONS[milliseconds % 1000]}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class AccessLog:
    """Turns batches of calls into lines. Formatting in batches keeps it off the path of a request."""

    __slots__ = ("_head", "_messages", "_next", "_tail")

    def __init__(self, source: str) -> None:
        self._head = '{"id":"' + record_ids()
        self._tail = f'"type":"{TYPE}access","source":{quoted(source)},"specversion":"1.0","data":'
        self._next = 1
        self._messages: dict[bytes | str, str] = {}

    def format(self, batch: list[AccessRecord]) -> bytes:
        """One line for each record; latencies in ms.

        Times hardly differ within a batch and callers repeat themselves, so both are rendered once.
        """
        tail, number, messages = self._tail, self._next, self._messages
        below_one, fractions, last_digits = _BELOW_ONE, _FRACTIONS, _LAST_DIGITS
        head = f"{self._head}{number >> 8:010x}"
        rendered, times = -1, ""
        lines: list[str] = []
        append = lines.append
        for at, message, status, predict_us, request_id, sent, total_us in batch:
            millisecond = at // 1000000
            if millisecond != rendered:
                rendered, moment = millisecond, stamp(millisecond)
                times = f'","time":"{moment}",{tail}{{"logEmissionTime":"{moment}","message":'
            text = messages.get(message) or self._render(message)
            predict = (
                below_one[predict_us]
                if predict_us < 1000
                else f"{predict_us // 1000}{fractions[predict_us % 1000]}"
            )
            total = (
                below_one[total_us] if total_us < 1000 else f"{total_us // 1000}{fractions[total_us % 1000]}"
            )
            append(
                f'{head}{last_digits[number & 255]}{times}{text},"modelLatency":{predict},"opcRequestId":"'
                f'{request_id.decode("latin-1")}","status":{status},"totalLatency":{total},"bytes":{sent}}}}}\n'
            )
            number += 1
            if not number & 255:
                head = f"{self._head}{number >> 8:010x}"
        self._next = number
        return "".join(lines).encode("latin-1")

    def _render(self, message: bytes | str) -> str:
        """JSON of a request line. What callers invent is cut, and kept only so long."""
        text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
        rendered = quoted(text[:MAX_MESSAGE])
        if len(text) <= MAX_MESSAGE:
            if len(self._messages) >= REMEMBERED_MESSAGES:
                self._messages.clear()
            self._messages[message] = rendered
        return rendered


class PredictLog:
    """Puts raw text, which native code wrote past Python's streams, into records of the predict log."""

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


def say(level: str, message: str) -> bool:
    """One line for the operator, on stderr. False if nobody could take it now: it is not waited for."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"{moment} {level:<7} {' '.join(message.split())}".encode("utf-8", "replace")
    try:
        fd = sys.__stderr__.fileno() if sys.__stderr__ else 2
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A pipe that polls writable has room for PIPE_BUF bytes, so this write does not block.
        if not stat.S_ISREG(os.fstat(fd).st_mode) and not poll.poll(0):
            return False
        return os.write(fd, line[: MAX_SAY - 1] + b"\n") > 0
    except (OSError, ValueError):  # stderr is closed, full or gone: there is nobody left to tell
        return False
