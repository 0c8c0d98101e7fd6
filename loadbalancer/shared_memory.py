"""The shared memory of one load balancer: where everything lies, and who may write it.

Touches only the mapping that it is handed.  One memfd without a name, mapped by every process of
the load balancer; it outlives each of them, and passes to the next generation at a reload.

    offset     size                                  written by
    0          control words     4096                controller (table sequence), supervisor (reloads refused,
                                                     children that hung), each child its heartbeat
    4096       bucket            4096                whoever holds the lock on these bytes
    8192       endpoint table    2 x 524288          controller
    ...        counters          MAX_PROXIES x 8192  that proxy
    ...        cells             MAX_PROXIES x MAX_INSTANCES x 128   that proxy

The *endpoint table* is what the controller decides: the instances, those that were removed, and the limits.
Counters and cells are what each proxy saw: 64-bit words, one writer each, summed by readers that take no lock
and tolerate a word that is a moment old.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

from twofold.shm.json_page import JsonPage
from twofold.telemetry import counters, histograms

PAGE = 4096
MAX_PROXIES = 32  # two generations side by side
MAX_INSTANCES = 256

BUCKET_OFFSET: int = PAGE
TABLE_OFFSET = 2 * PAGE
TABLE_SIZE = 524288  # for as many instances with names as long as they can be
COUNTERS_OFFSET = TABLE_OFFSET + 2 * TABLE_SIZE
COUNTERS_SIZE = 8192
CELLS_OFFSET = COUNTERS_OFFSET + MAX_PROXIES * COUNTERS_SIZE
CELL_SIZE = 128
SIZE = CELLS_OFFSET + MAX_PROXIES * MAX_INSTANCES * CELL_SIZE

SEQUENCE_OFFSET = 0
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

# Histograms, by their first cell.
LATENCY: Final = 64  # from the head's last byte to the answer's last
THROTTLE: Final = 128  # time that a message waited for bandwidth; only those that waited are counted
QUEUE: Final = 192  # time that a request waited for an instance; only those that waited
UPSTREAM: Final = 256  # from the hand-over to the instance to its whole answer
CELLS = UPSTREAM + histograms.SIZE

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


def endpoint_table(memory: mmap.mmap) -> JsonPage:
    """What the controller has decided: it writes, every process reads."""
    return JsonPage(memory, SEQUENCE_OFFSET, TABLE_OFFSET, TABLE_SIZE)


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


def open_counters(memory: mmap.mmap, proxy: int) -> counters.Counters:
    """The counters of the one process that writes this block."""
    return counters.Counters(counters.words(memory, _counters_start(proxy), CELLS), GAUGES)


def read_counters(memory: mmap.mmap) -> list[list[int]]:
    """What each proxy has counted, as of its last flush."""
    return [counters.read_words(memory, _counters_start(proxy), CELLS) for proxy in range(MAX_PROXIES)]


def forget_gauges(memory: mmap.mmap, proxy: int) -> None:
    """A proxy has ended: what it held, it holds no more. What it counted stays counted."""
    block = counters.words(memory, _counters_start(proxy), CELLS)
    for gauge in GAUGES:
        block[gauge] = 0
    for instance in range(MAX_INSTANCES):
        words = cell(memory, proxy, instance)
        words[OUTSTANDING] = words[CREDITS] = 0


def _counters_start(proxy: int) -> int:
    return COUNTERS_OFFSET + proxy * COUNTERS_SIZE


def cell(memory: mmap.mmap, proxy: int, instance: int) -> memoryview:
    """The 64-bit words that a proxy keeps of the instance with this cell number."""
    start = CELLS_OFFSET + (proxy * MAX_INSTANCES + instance) * CELL_SIZE
    return counters.words(memory, start, CELL_WORDS)
