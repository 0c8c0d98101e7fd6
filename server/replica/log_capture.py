"""What the model prints or logs, as records of the predict log with the request's id.

Standard library only, Python 3.7 to 3.14.  Replaces sys.stdout and sys.stderr of this process.
A record is one write of at most PIPE_BUF bytes to a pipe that never blocks: records of several
replicas cannot mix, and a log whose reader is stuck costs lines, which are counted, not requests.

The envelope is the contract's: see docs/design.md, Logs.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

from . import slots

TYPE = "com.oraclecloud.datascience.modeldeployment.predict"
MAX_RECORD = 4096  # PIPE_BUF: writes up to this are atomic
MAX_TEXT = 3000  # characters of a line in one record; longer lines, ended or not, become several

NO_REQUEST = (0, 0)
request = NO_REQUEST  # the request that is served: its slot's offset, and the length of its id

_memory: Any = b""


def follow(memory: Any) -> None:
    """Read request ids from `memory` when a line is printed; most requests print nothing."""
    global _memory
    _memory = memory


def request_id() -> str:
    start, size = request[0] + slots.REQUEST_ID_OFFSET, request[1]
    return _memory[start : start + size].decode("latin-1") if size else ""


class _Raw(io.RawIOBase):
    """sys.stdout.buffer: bytes in."""

    def __init__(self, stream: LineStream) -> None:
        self.stream = stream
        decoder = codecs.getincrementaldecoder("utf-8")  # a character may come in parts
        self._decode = decoder("replace").decode

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.stream.write(self._decode(content))
        return len(content)

    def fileno(self) -> int:
        return self.stream.fileno()


class LineStream(io.TextIOBase):
    """A text stream whose lines become records; safe for threads; never raises for a full pipe."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, name: str, number: int, records: _Records) -> None:
        self.name = name
        self._number = number
        self._records = records
        self._of_thread = threading.local()  # print() writes a line in two parts: threads must not mix them
        self.buffer = _Raw(self)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._number

    def write(self, text: str) -> int:
        """Send whole lines, and keep what has not ended. Raises TypeError for bytes, as text streams do."""
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        *lines, held = (self._begun() + text).split("\n")
        # A progress bar never ends its line: what is held must stay short, or each write copies it all.
        full = len(held) // MAX_TEXT * MAX_TEXT
        self._of_thread.held = held[full:]
        for line in lines:
            self._records.send(self.name, line)
        if full:
            self._records.send(self.name, held[:full])
        return len(text)

    def reconfigure(self, **options: Any) -> None:
        """Programs ask a standard stream for another encoding or buffering; this one needs neither."""

    def flush(self) -> None:
        """A begun line stays until its end: print(x, end="", flush=True) is a line in the making."""

    def finish(self) -> None:
        """At the end of the process: whatever this thread has begun is a line."""
        held, self._of_thread.held = self._begun(), ""
        if held:
            self._records.send(self.name, held)

    def _begun(self) -> str:
        return getattr(self._of_thread, "held", "")


class _Records:
    def __init__(self, fd: int, source: str, replica: int, dropped: Any) -> None:
        self._fd = fd
        self._replica = replica
        self._dropped = dropped
        digits = os.urandom(10).hex()
        self._prefix = "%s-%s-4%s-8%s-" % (digits[:8], digits[8:12], digits[12:15], digits[15:18])
        self._count = itertools.count(1)
        self._constant = {"type": TYPE, "source": source, "specversion": "1.0"}

    def send(self, name: str, line: str) -> None:
        for start in range(0, max(len(line), 1), MAX_TEXT):
            self._send_piece(name, line[start : start + MAX_TEXT])

    def _send_piece(self, name: str, text: str) -> None:
        record = self._record(name, text)
        if len(record) > MAX_RECORD and len(text) > 1:
            # JSON spends up to six bytes on a character.
            half = len(text) // 2
            self._send_piece(name, text[:half])
            self._send_piece(name, text[half:])
            return
        try:
            os.write(self._fd, record)
        except OSError:  # the pipe is full, or has no reader
            self._dropped()

    def _record(self, name: str, text: str) -> bytes:
        now_s = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + ".%03dZ" % (now_s % 1 * 1000)
        record: dict[str, Any] = {"id": self._prefix + "%012x" % next(self._count), "time": moment}
        record.update(self._constant)
        record["data"] = {
            "logEmissionTime": moment,
            "message": text.encode("utf-8", "replace").decode(),  # readers refuse half a surrogate pair
            "opcRequestId": request_id(),
            "stream": name,
            "replica": self._replica,
        }
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def redirect(fd: int, source: str, replica: int, dropped: Any = lambda: None) -> None:
    """From now on sys.stdout and sys.stderr, and so logging too, speak to the pipe `fd`.

    `dropped` is called for each record that the pipe did not take.
    """
    records = _Records(fd, source, replica, dropped)
    replaced = [sys.stdout, sys.__stdout__], [sys.stderr, sys.__stderr__]
    sys.stdout = LineStream("stdout", 1, records)
    sys.stderr = LineStream("stderr", 2, records)
    for old, new in zip(replaced, (sys.stdout, sys.stderr)):
        _redirect_logging(old, new)


def _redirect_logging(old: list[Any], new: LineStream) -> None:
    """Handlers made before, by a score.py that was loaded in the fork server, hold the stream itself."""
    logging = sys.modules.get("logging")
    if logging is None:
        return
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if any(getattr(handler, "stream", None) is stream for stream in old if stream is not None):
                handler.stream = new


def finish() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LineStream):
            stream.finish()
