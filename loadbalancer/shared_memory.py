"""The layout of a load balancer's shared memory, and the writer of each part.

Touches only the mapping that is passed to it.  One anonymous memfd, mapped by every process of the load
balancer; it outlives each of them, and passes to the next generation at a reload.

    offset     size                                  written by
    0          control words     4096                controller (table sequence), supervisor (reloads refused,
                                                     children that hung), each child its heartbeat
    4096       bucket            4096                the process that holds the lock on these bytes
    8192       endpoint table    2 x 524288          controller
    ...        counters          MAX_PROXIES x 8192  that proxy
    ...        cells             MAX_PROXIES x MAX_INSTANCES x 128   that proxy

The *endpoint table* holds the controller's decisions: the instances, the removed ones, and the limits.
Counters and cells hold each proxy's counts: 64-bit words with one writer each.  Readers sum them without a
lock and tolerate words that are slightly out of date.
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
TABLE_SIZE = 524288  # fits MAX_INSTANCES with names of the greatest length
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

# Requests by response status: STATUS_CELL.get(status, OTHER_STATUS).
STATUSES = (200, 400, 404, 405, 408, 411, 413, 417, 429, 431, 499, 500, 501, 502, 503, 504, 505)
STATUS_CELL = {status: cell for cell, status in enumerate(STATUSES)}
OTHER_STATUS = 17

BYTES_IN: Final = 20  # every HTTP byte received from clients
BYTES_OUT = 21  # every HTTP byte sent to clients
REFUSED_BANDWIDTH = 22  # 429: the predicted delay exceeded delay_budget
REFUSED_RATE = 23  # 429: requests per second
REFUSED_CALLER = 24  # 429: this caller's own limits
REFUSED_QUEUE = 25  # 503: the queue was full, or the wait too long
REFUSED_DOWN = 26  # 503: no instance was available
RETRIED = 27
RETRY_DENIED = 28  # the retry budget was spent
ACCEPTED = 29
OPEN_CONNECTIONS = 30  # a gauge, as the next three
INSIDE = 31  # requests outstanding at instances
WAITING = 32  # requests in the queue
THROTTLED = 33  # tickets that wait for bandwidth
ACCESS_DROPPED = 34
UPSTREAM_OPENED = 35  # connections to instances
UPSTREAM_OPEN = 36  # a gauge
UNAUTHORISED = 37
GAUGES = (OPEN_CONNECTIONS, INSIDE, WAITING, THROTTLED, UPSTREAM_OPEN)

# Histograms, by their first cell.
LATENCY: Final = 64  # from the last byte of the request head to the last byte of the response
THROTTLE: Final = 128  # time that a message waited for bandwidth; messages that did not wait are excluded
QUEUE: Final = 192  # time that a request waited for an instance; requests that did not wait are excluded
UPSTREAM: Final = 256  # from sending the request to the instance to its response
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
CREDITS = 8  # this proxy's limit of outstanding requests
TIMEOUTS = 9
LATENCY_SUM_US = 10  # with REQUESTS: a mean over any window
BROKEN = 11  # responses that were invalid HTTP or incomplete
CELL_WORDS = CELL_SIZE // 8


def create() -> int:
    """Create the memory, filled with zeros; return its fd."""
    fd = os.memfd_create("twofold-balance", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


def attach(fd: int) -> mmap.mmap:
    """Map the memory. The fd may be closed afterwards."""
    return mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def endpoint_table(memory: mmap.mmap) -> JsonPage:
    """The endpoint table: the controller writes it, every process reads it."""
    return JsonPage(memory, SEQUENCE_OFFSET, TABLE_OFFSET, TABLE_SIZE)


class RefusedReloads:
    """The number of refused reloads, and the last reason. The supervisor writes, the controller reads."""

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
    """The 64-bit words that children write as heartbeats."""
    return memoryview(shared)[HEARTBEATS_OFFSET : HEARTBEATS_OFFSET + 8 * HEARTBEATS].cast("Q")


def hung(shared: mmap.mmap) -> int:
    """The number of children that were replaced because they hung."""
    return int(_HUNG.unpack_from(shared, HUNG_OFFSET)[0])


def count_hung(shared: mmap.mmap) -> None:
    """Increment hung(); called by the supervisor only."""
    _HUNG.pack_into(shared, HUNG_OFFSET, hung(shared) + 1)


def open_counters(memory: mmap.mmap, proxy: int) -> counters.Counters:
    """The counters of block `proxy`, for the one process that writes it."""
    return counters.Counters(counters.words(memory, _counters_start(proxy), CELLS), GAUGES)


def read_counters(memory: mmap.mmap) -> list[list[int]]:
    """The counters of each block, as of its last flush."""
    return [counters.read_words(memory, _counters_start(proxy), CELLS) for proxy in range(MAX_PROXIES)]


def forget_gauges(memory: mmap.mmap, proxy: int) -> None:
    """Reset the gauges of a proxy that has ended; counters are kept."""
    block = counters.words(memory, _counters_start(proxy), CELLS)
    for gauge in GAUGES:
        block[gauge] = 0
    for instance in range(MAX_INSTANCES):
        words = cell(memory, proxy, instance)
        words[OUTSTANDING] = words[CREDITS] = 0


def _counters_start(proxy: int) -> int:
    return COUNTERS_OFFSET + proxy * COUNTERS_SIZE


def cell(memory: mmap.mmap, proxy: int, instance: int) -> memoryview:
    """The 64-bit words of a proxy about the instance with this cell number."""
    start = CELLS_OFFSET + (proxy * MAX_INSTANCES + instance) * CELL_SIZE
    return counters.words(memory, start, CELL_WORDS)
