"""Is an instance well? One GET of its health path, and what a row of answers means.

Touches one connection of its own per probe.  `Verdict` is arithmetic: two failures in a row take an
instance out, one success lets a new one in, two bring one back.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from loadbalancer.address import Address

FALL = 2
RISE = 2
MAX_ANSWER = 262144


class Verdict:
    """`up` is what the answers say so far. `workers`: replicas that the instance has ready, 0 unknown."""

    __slots__ = ("_row", "ever", "up", "why", "workers")

    def __init__(self, up: bool = False, ever: bool = False, workers: int = 0) -> None:
        self.up = up
        self.ever = ever  # it has been up before
        self.workers = workers
        self.why = "" if up else "not asked yet"
        self._row = 0  # answers in a row that contradict `up`

    def hear(self, well: bool, why: str, workers: int) -> bool:
        """One more answer; True when the verdict has changed."""
        self.why = "" if well else why
        changed = well and workers != self.workers
        if well:
            self.workers = workers
        if well == self.up:
            self._row = 0
            return changed
        self._row += 1
        if self._row < (FALL if self.up else RISE if self.ever else 1):
            return changed
        self.up, self._row = well, 0
        self.ever = self.ever or well
        return True


async def probe(where: Address, path: str, timeout: float) -> tuple[bool, str, int]:
    """(well, why not, replicas ready); never raises but for cancellation."""
    try:
        async with asyncio.timeout(timeout):
            status, body = await _get(where, path)
    except TimeoutError:
        return False, f"no answer within {timeout:g} s", 0
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return False, str(error) or type(error).__name__, 0
    if status != 200:
        return False, f"{path} answered {status}", 0
    return True, "", _workers(body)


async def _get(where: Address, path: str) -> tuple[int, bytes]:
    if where.is_unix:
        reader, writer = await asyncio.open_unix_connection(where.path)
    else:
        reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        host = "localhost" if where.is_unix else str(where)
        writer.write(b"GET %b HTTP/1.0\r\nhost: %b\r\n\r\n" % (path.encode(), host.encode()))
        # HTTP/1.0 and no keep-alive: the end of the answer is the end of the connection.
        answer = b""
        while len(answer) < MAX_ANSWER and (more := await reader.read(MAX_ANSWER)):
            answer += more
    finally:
        writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("its answer is not HTTP")
    return int(words[1]), body


def _workers(body: bytes) -> int:
    """Replicas that are ready, if the instance is one of ours and says so."""
    try:
        board: Any = json.loads(body)
        return sum(replica.get("state") == "ready" for replica in board["replicas"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0
