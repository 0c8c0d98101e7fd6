"""The shared memory of one load balancer: where everything lies, and who may write it.

Touches only the mapping that it is handed.  One memfd without a name, mapped by every process of
the load balancer; it outlives each of them, and passes to the next generation at a reload.

    offset     size                                  written by
    0          control words     4096                controller (board sequence), supervisor (reloads refused,
                                                     children that hung), each child its heartbeat
    4096       bucket            4096                whoever holds the lock on these bytes
    8192       board             2 x 524288          controller
    ...        counters          MAX_PROXIES x 8192  that proxy
    ...        cells             MAX_PROXIES x MAX_INSTANCES x 128   that proxy

The *board* is what the controller decides: JSON, written into the half that nobody reads, then shown
by raising the sequence.  Counters and cells are what each proxy saw: 64-bit words, one writer each,
summed by readers who take no lock and tolerate a word that is a moment old.

A duration d, in whole microseconds, is counted in bucket d.bit_length() of its histogram.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from array import array
from typing import Any, Final

PAGE = 4096
MAX_PROXIES = 32  # two generations side by side
MAX_INSTANCES = 256

BUCKET_OFFSET: int = PAGE
BOARD_OFFSET = 2 * PAGE
BOARD_SIZE = 524288  # for as many instances with names as long as they can be
COUNTERS_OFFSET = BOARD_OFFSET + 2 * BOARD_SIZE
COUNTERS_SIZE = 8192
CELLS_OFFSET = COUNTERS_OFFSET + MAX_PROXIES * COUNTERS_SIZE
CELL_SIZE = 128
SIZE = CELLS_OFFSET + MAX_PROXIES * MAX_INSTANCES * CELL_SIZE

SEQUENCE_OFFSET = 0
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
REFUSAL_OFFSET = 64
_REFUSAL = struct.Struct("<II")
MAX_REFUSAL = 3072  # bytes
HUNG_OFFSET = 3576
_HUNG = struct.Struct("<Q")
HEARTBEATS_OFFSET = 3584  # one word for each child: the proxies by number, then the others
HEARTBEATS = 64

# ---------------------------------------------------------------- counters of a proxy

# Requests by the status of their answer: STATUS_CELL.get(status, OTHER_STATUS).
STATUSES = (200, 400, 404, 405, 408, 411, 413, 417, 429, 431, 499, 500, 501, 502, 503, 504, 505)
STATUS_CELL = {status: cell for cell, status in enumerate(STATUSES)}
OTHER_STATUS = 17

BYTES_IN: Final = 20  # every HTTP byte received from clients
BYTES_OUT = 21  # every HTTP byte sent to clients
REFUSED_BANDWIDTH = 22  # 429: the predicted delay was above the budget
REFUSED_RATE = 23  # 429: requests per second
REFUSED_CALLER = 24  # 429: this caller's own limits
REFUSED_QUEUE = 25  # 503: the queue was full, or the wait too long
REFUSED_DOWN = 26  # 503: no instance could be asked
RETRIED = 27
RETRY_DENIED = 28  # the retry budget was spent
ACCEPTED = 29
OPEN_CONNECTIONS = 30  # a gauge; so are the next three
INSIDE = 31  # requests handed to instances
WAITING = 32  # requests in the queue
THROTTLED = 33  # streams that wait for bandwidth
ACCESS_DROPPED = 34
UPSTREAM_OPENED = 35  # connections to instances
UPSTREAM_OPEN = 36  # a gauge
UNAUTHORISED = 37
GAUGES = (OPEN_CONNECTIONS, INSIDE, WAITING, THROTTLED, UPSTREAM_OPEN)

# Histograms: cells [start, start + BUCKETS) count, cell start + SUM adds up microseconds.
LATENCY = 64  # from the head's last byte to the answer's last
THROTTLE = 128  # time that a message waited for bandwidth; only those that waited are counted
QUEUE = 192  # time that a request waited for an instance; only those that waited
UPSTREAM = 256  # from the hand-over to the instance to its whole answer
BUCKETS = 63
SUM = 63
CELLS = 320

# ---------------------------------------------------------------- cells: proxy x instance

OUTSTANDING = 0  # a gauge
REQUESTS = 1
FIVEXX = 2
CONNECT_ERRORS = 3
LATENCY_US = 4  # moving average
EJECTED_UNTIL = 5  # monotonic ns; 0 when it is in rotation
EJECTIONS = 6
RETRIES = 7
CREDITS = 8  # how many requests this proxy would give it at once
TIMEOUTS = 9
LATENCY_SUM_US = 10  # with REQUESTS: a mean over any window
BROKEN = 11  # answers that were no HTTP, or ended too soon
CELL_WORDS = CELL_SIZE // 8


def create() -> int:
    """The fd of a fresh memory."""
    fd = os.memfd_create("twofold-balance", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


def attach(fd: int) -> mmap.mmap:
    """Map it. The fd may be closed afterwards; the mapping stays."""
    return mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


class Board:
    """The controller's decisions, one writer and many readers."""

    __slots__ = ("_memory",)

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @property
    def sequence(self) -> int:
        """Rises with every publication; 0 is an empty board."""
        return int(_SEQUENCE.unpack_from(self._memory, SEQUENCE_OFFSET)[0])

    def publish(self, content: dict[str, Any]) -> None:
        """Show `content` to every process; ValueError if it is larger than a board."""
        text = json.dumps(content, separators=(",", ":")).encode()
        if len(text) + _LENGTH.size > BOARD_SIZE:
            raise ValueError(f"the board takes {BOARD_SIZE} bytes, not {len(text)}")
        following = self.sequence + 1
        start = BOARD_OFFSET + following % 2 * BOARD_SIZE
        _LENGTH.pack_into(self._memory, start, len(text))
        self._memory[start + _LENGTH.size : start + _LENGTH.size + len(text)] = text
        _SEQUENCE.pack_into(self._memory, SEQUENCE_OFFSET, following)

    def read(self) -> dict[str, Any]:
        """The newest whole content; {} while nothing was published."""
        while True:
            sequence = self.sequence
            if not sequence:
                return {}
            start = BOARD_OFFSET + sequence % 2 * BOARD_SIZE
            (size,) = _LENGTH.unpack_from(self._memory, start)
            text = self._memory[start + _LENGTH.size : start + _LENGTH.size + size]
            # A half is written again only after the other one was shown: by then the sequence has moved.
            if self.sequence == sequence:
                content: dict[str, Any] = json.loads(text)
                return content


class RefusedReloads:
    """How many, and why the last one. The supervisor writes, the controller reads."""

    __slots__ = ("_memory",)

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def add(self, why: str) -> None:
        text = why.encode()[:MAX_REFUSAL]
        times, _ = _REFUSAL.unpack_from(self._memory, REFUSAL_OFFSET)
        start = REFUSAL_OFFSET + _REFUSAL.size
        self._memory[start : start + len(text)] = text
        _REFUSAL.pack_into(self._memory, REFUSAL_OFFSET, times + 1, len(text))

    def read(self) -> tuple[int, str]:
        times, size = map(int, _REFUSAL.unpack_from(self._memory, REFUSAL_OFFSET))
        start = REFUSAL_OFFSET + _REFUSAL.size
        return times, self._memory[start : start + size].decode("utf-8", "replace")


def heartbeats(shared: mmap.mmap) -> memoryview:
    """The 64-bit words that children stamp."""
    return memoryview(shared)[HEARTBEATS_OFFSET : HEARTBEATS_OFFSET + 8 * HEARTBEATS].cast("Q")


def hung(shared: mmap.mmap) -> int:
    """How many children have been replaced because they hung."""
    return int(_HUNG.unpack_from(shared, HUNG_OFFSET)[0])


def count_hung(shared: mmap.mmap) -> None:
    """The supervisor's alone."""
    _HUNG.pack_into(shared, HUNG_OFFSET, hung(shared) + 1)


class Counters:
    """One proxy's own counters: `counters.cells[memory.RETRIED] += 1`, and `flush()` at every tick.

    Counting goes to a plain list, which costs half as much as shared memory does.
    """

    __slots__ = ("_block", "cells")

    def __init__(self, shared: mmap.mmap, proxy: int) -> None:
        """Go on from what the block's last owner left; its gauges died with it."""
        start = COUNTERS_OFFSET + proxy * COUNTERS_SIZE
        self._block = memoryview(shared)[start : start + 8 * CELLS].cast("Q")
        self.cells: list[int] = self._block.tolist()
        for gauge in GAUGES:
            self.cells[gauge] = 0
        self.flush()

    def flush(self) -> None:
        self._block[:] = array("Q", self.cells)


def counters(shared: mmap.mmap, proxy: int) -> list[int]:
    """What a proxy has counted, as of its last flush."""
    start = COUNTERS_OFFSET + proxy * COUNTERS_SIZE
    with memoryview(shared) as whole, whole[start : start + 8 * CELLS].cast("Q") as block:
        return block.tolist()


def totals(shared: mmap.mmap) -> list[int]:
    """The counters of all proxies, added up."""
    return [sum(column) for column in zip(*(counters(shared, n) for n in range(MAX_PROXIES)), strict=True)]


def cell(shared: mmap.mmap, proxy: int, instance: int) -> memoryview:
    """The 64-bit words that a proxy keeps of the instance with this cell number."""
    start = CELLS_OFFSET + (proxy * MAX_INSTANCES + instance) * CELL_SIZE
    return memoryview(shared)[start : start + CELL_SIZE].cast("Q")
