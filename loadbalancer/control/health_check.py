"""Health checks: one GET of an instance's health path, and the verdict on successive results.

Touches one new connection per probe.  `ProbeResult` is pure: FALL consecutive failures make an instance
down; one success makes a new instance up, RISE consecutive successes one that was up before.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

from twofold.net.address import Address
from twofold.wire import proxy_protocol

FALL = 2
RISE = 2
NOT_ASKED = "not asked yet"
MAX_ANSWER = 262144
MAX_WHY = 160  # characters
PIECE = 65536
# Never a path: a process that took over an instance's port could direct requests to any socket.
_LOCAL = re.compile(r"@twofold-[0-9a-f-]{1,60}")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Health:
    """The result of one probe. A Twofold server reports `workers`, the number of ready replicas, and `local`,
    the name of its abstract Unix socket; other servers yield 0 and "".
    """

    well: bool
    why: str = ""  # the reason if it is not
    workers: int = 0
    local: str = ""


class ProbeResult:
    """The verdict on the probes of one instance. `up`: the verdict; `was_up`: it has been up before."""

    __slots__ = ("_row", "local", "up", "was_up", "why", "workers")

    def __init__(self, up: bool = False, was_up: bool = False, workers: int = 0, why: str = "") -> None:
        self.up = up
        self.was_up = was_up
        self.workers = workers
        self.local = ""
        self.why = "" if up else why or NOT_ASKED
        self._row = 0  # consecutive results that contradict `up`

    @property
    def flapping(self) -> bool:
        """Whether the last result contradicts `up`, so that the next probe should follow soon."""
        return self._row > 0

    def hear(self, answer: Health) -> bool:
        """Add a result; True if `up`, `workers` or `local` has changed."""
        self.why = answer.why
        changed = answer.well and (answer.workers, answer.local) != (self.workers, self.local)
        if answer.well:
            self.workers, self.local = answer.workers, answer.local
        if answer.well == self.up:
            self._row = 0
            return changed
        self._row += 1
        if self._row < (FALL if self.up else RISE if self.was_up else 1):
            return changed
        self.up, self._row = answer.well, 0
        self.was_up = self.was_up or answer.well
        return True


@dataclass(frozen=True, slots=True)
class Probe:
    """The parameters of a health check."""

    path: str
    timeout_s: float
    line: str = "off"  # the PROXY protocol version that instances expect

    async def put(self, where: Address) -> Health:
        """Probe the instance at `where`. Raises only CancelledError."""
        try:
            async with asyncio.timeout(self.timeout_s):
                status, body = await self._get(where)
        except TimeoutError:
            return Health(False, f"no answer within {self.timeout_s:g} s")
        except ConnectionRefusedError:
            return Health(False, "refuses connections")
        except (OSError, ValueError) as error:
            return Health(False, _why(error))
        if status != 200:
            return Health(False, f"{self.path} answered {status}")
        workers, local = _reported(body)
        return Health(True, "", workers, local)

    async def _get(self, where: Address) -> tuple[int, bytes]:
        if where.is_unix:
            reader, writer = await asyncio.open_unix_connection(where.path)
        else:
            reader, writer = await asyncio.open_connection(where.host, where.port)
        try:
            host = "localhost" if where.is_unix else str(where)
            line = proxy_protocol.render(self.line, None) if self.line != "off" else b""
            # HTTP/1.0: the response ends with the connection, or at its content-length.
            writer.write(line + f"GET {self.path} HTTP/1.0\r\nhost: {host}\r\n\r\n".encode())
            answer = b""
            while len(answer) < MAX_ANSWER and not _whole(answer) and (more := await reader.read(PIECE)):
                answer += more
        finally:
            writer.transport.abort()
        return _parse(answer)


def _why(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__)[:MAX_WHY]


def _whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    length = _LENGTH.search(answer, 0, end + 2) if end >= 0 else None
    return length is not None and len(answer) >= end + 4 + int(length[1])


def _parse(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("its answer is not HTTP" if answer else "closes connections without an answer")
    return int(words[1]), body


def _reported(body: bytes) -> tuple[int, str]:
    """(ready replicas, Unix socket's name) from the health response of a Twofold server, else (0, "")."""
    try:
        status: Any = json.loads(body)
        workers = sum(replica.get("state") == "ready" for replica in status["replicas"])
        local = str(status.get("socket", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, ""
    return workers, local if _LOCAL.fullmatch(local) else ""
