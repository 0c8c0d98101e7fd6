"""The counters of an instance: the cells of a block, the owner of each block, and the sum of all.

Touches only the mapped memory of its caller (see replica/slots.py).  Each front has a block; the last block
is the log writer's.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from twofold.server.replica import slots
from twofold.telemetry import counters, histograms

# Requests by the status of their answer: STATUS_CELL.get(status, OTHER_STATUS).
STATUSES = (200, 400, 404, 405, 408, 411, 413, 417, 429, 431, 500, 501, 503, 505)
STATUS_CELL = {status: cell for cell, status in enumerate(STATUSES)}
OTHER_STATUS = 14
CLIENT_GONE = 15  # the client left before its answer

BYTES_IN = 16  # bodies of requests
BYTES_OUT = 17  # bodies of answers
REPLAYED = 18  # offered to a second replica
REFUSED = 19  # killed a second replica, or lies in quarantine
DEADLINE = 20  # answered 500 because the deadline had passed
OPEN_CONNECTIONS = 21  # a gauge; so is REQUESTS_INSIDE
ACCEPTED_CONNECTIONS = 22
REQUESTS_INSIDE = 23  # slots in use, from the first byte of the body to the answer
ACCESS_DROPPED = 24  # log lines that could not be written
PREDICT_DROPPED = 25

# Histograms, by their first cell.
QUEUE = 64
PREDICT = 128
ENCODE = 192
TOTAL = 256
CELLS = TOTAL + histograms.SIZE

LOG_WRITER = slots.MAX_FRONTS - 1  # the log writer's block: no front may have this number
GAUGES = (OPEN_CONNECTIONS, REQUESTS_INSIDE)


def heartbeats(memory: mmap.mmap) -> memoryview:
    """The 64-bit heartbeat words of fronts, log writer and fork server."""
    return counters.words(memory, slots.HEARTBEATS_OFFSET, slots.HEARTBEATS)


def open_counters(memory: mmap.mmap, block: int) -> counters.Counters:
    """The counters of the process that owns this block."""
    return counters.Counters(counters.words(memory, _start(block), CELLS), GAUGES)


def _start(block: int) -> int:
    return slots.COUNTERS_OFFSET + block * slots.COUNTERS_SIZE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of an instance at one moment: cells summed over all blocks, and counts of replicas."""

    cells: tuple[int, ...]
    served: tuple[int, ...]  # requests, by replica index
    queued: int  # requests that wait in the queue

    def answered(self) -> int:
        """Number of answered requests of any status."""
        return sum(self.cells[: OTHER_STATUS + 1])


def snapshot(memory: mmap.mmap, layout: slots.Layout, queued: int = 0, replicas: int = 0) -> Snapshot:
    """Sum the flushed counts of all processes. `replicas`: number of replica indices in use."""
    blocks = (*range(layout.fronts), LOG_WRITER)
    totals = counters.totals(counters.read_words(memory, _start(block), CELLS) for block in blocks)
    words = [_replica_words(memory, index) for index in range(replicas)]
    totals[PREDICT_DROPPED] += sum(word[slots.LOG_LINES_DROPPED] for word in words)
    return Snapshot(tuple(totals), tuple(word[slots.REQUESTS_SERVED] for word in words), queued)


def _replica_words(memory: mmap.mmap, index: int) -> tuple[int, ...]:
    return slots.REPLICA_WORDS.unpack_from(
        memory, slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
    )
