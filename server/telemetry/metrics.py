"""What an instance counts, and the status board: layout, writing, reading, and exposition.

Touches only the mapped memory that it is handed.  Two things live there (see replica/slots.py):

    counter blocks   one for each front, and the last one for the log writer; one writer each
    status board     two halves; the supervisor fills the half that nobody reads, then flips

A process counts in a plain list and copies the list into its block now and then: adding to a list
costs half as much as adding to shared memory.  What a killed process had not copied yet is lost, but
a block never runs backwards, and its next owner goes on from it.  Readers take no lock; they sum.

A duration d, in whole microseconds, is counted in bucket d.bit_length() of its histogram: bucket i
holds everything below 2**i that is in no lower bucket.
"""

from __future__ import annotations

import json
import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twofold.server.replica import slots

if TYPE_CHECKING:
    from prometheus_client.core import HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Requests by the status of their answer: STATUS_CELL.get(status, OTHER_STATUS).
STATUSES = (200, 400, 404, 405, 408, 411, 413, 417, 429, 431, 500, 501, 503, 505)
STATUS_CELL = {status: cell for cell, status in enumerate(STATUSES)}
OTHER_STATUS = 14
CLIENT_GONE = 15  # the client left before its answer

BYTES_IN = 16  # bodies of requests
BYTES_OUT = 17  # bodies of answers
REPLAYED = 18  # offered to a second replica
REFUSED = 19  # killed a second replica, or lies in quarantine
DEADLINE = 20  # answered 500 because the time was up
OPEN_CONNECTIONS = 21  # a gauge; so is REQUESTS_INSIDE
ACCEPTED_CONNECTIONS = 22
REQUESTS_INSIDE = 23  # from the first body byte's slot to the answer: slots in use
ACCESS_DROPPED = 24  # log lines that nobody could take
PREDICT_DROPPED = 25

# Histograms: cells [start, start + BUCKETS) count, cell start + SUM adds up microseconds.
QUEUE = 64
PREDICT = 128
ENCODE = 192
TOTAL = 256
BUCKETS = 63
SUM = 63
CELLS = 320

LOG_WRITER = slots.MAX_FRONTS - 1  # the log writer's block: no front may have this number
GAUGES = (OPEN_CONNECTIONS, REQUESTS_INSIDE)

REPLICA_STATES = ("loading", "ready", "spare", "backoff", "dead")

# Buckets shown to Prometheus: 2**4 us (16 us) to 2**27 us (134 s); the rest is folded into the ends.
SHOWN_BUCKETS = range(4, 28)

_LENGTH = struct.Struct("<I")
_TORN_READS = 100


class Counters:
    """One process's own counters: `counters.cells[metrics.REPLAYED] += 1`, and `flush()` every 100 ms."""

    __slots__ = ("_block", "cells")

    def __init__(self, memory: mmap.mmap, block: int) -> None:
        """Go on from what the block's last owner left; its gauges died with it."""
        start = slots.COUNTERS_OFFSET + block * slots.COUNTERS_SIZE
        self._block = memoryview(memory)[start : start + 8 * CELLS].cast("Q")
        self.cells: list[int] = self._block.tolist()
        for gauge in GAUGES:
            self.cells[gauge] = 0
        self.flush()

    def flush(self) -> None:
        """Show the counts to the other processes."""
        self._block[:] = array("Q", self.cells)

    def close(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        self._block.release()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole instance at one moment: cells summed over all blocks, and what replicas count."""

    cells: tuple[int, ...]
    served: tuple[int, ...]  # requests, by replica index
    queued: int  # requests that wait in the queue

    def answered(self) -> int:
        """Requests answered so far, whatever the status."""
        return sum(self.cells[: OTHER_STATUS + 1])


def snapshot(memory: mmap.mmap, layout: slots.Layout, queued: int = 0, replicas: int = 0) -> Snapshot:
    """Sum up what every process has flushed. `replicas`: how many replica indices are in use."""
    totals = [0] * CELLS
    with memoryview(memory) as whole:
        for block in (*range(layout.fronts), LOG_WRITER):
            start = slots.COUNTERS_OFFSET + block * slots.COUNTERS_SIZE
            with whole[start : start + 8 * CELLS].cast("Q") as cells:
                totals = [total + cell for total, cell in zip(totals, cells, strict=True)]
    words = [_replica_words(memory, index) for index in range(replicas)]
    totals[PREDICT_DROPPED] += sum(word[slots.LOG_LINES_DROPPED] for word in words)
    return Snapshot(tuple(totals), tuple(word[slots.REQUESTS_SERVED] for word in words), queued)


def _replica_words(memory: mmap.mmap, index: int) -> tuple[int, ...]:
    return slots.REPLICA_WORDS.unpack_from(
        memory, slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
    )


def write_board(memory: mmap.mmap, board: Mapping[str, Any]) -> None:
    """Publish the status board; only the supervisor may. Texts are cut where it would not fit."""
    payload = _fitted(board)
    (sequence,) = slots.CONTROL.unpack_from(memory, slots.BOARD_SEQUENCE)
    half = slots.BOARD_OFFSET + (sequence + 1) % 2 * slots.BOARD_SIZE
    _LENGTH.pack_into(memory, half, len(payload))
    memory[half + _LENGTH.size : half + _LENGTH.size + len(payload)] = payload
    slots.CONTROL.pack_into(memory, slots.BOARD_SEQUENCE, (sequence + 1) & 0xFFFFFFFF)


def read_board(memory: mmap.mmap) -> dict[str, Any]:
    """The board as last published, or an empty one of an instance that has not published yet."""
    for _ in range(_TORN_READS):
        (sequence,) = slots.CONTROL.unpack_from(memory, slots.BOARD_SEQUENCE)
        if not sequence:
            return {"state": "starting", "messages": [], "replicas": [], "restarts": {}}
        half = slots.BOARD_OFFSET + sequence % 2 * slots.BOARD_SIZE
        size = min(_LENGTH.unpack_from(memory, half)[0], slots.BOARD_SIZE - _LENGTH.size)
        payload = memory[half + _LENGTH.size : half + _LENGTH.size + size]
        # The half that was read is rewritten only after the sequence has moved on.
        if slots.CONTROL.unpack_from(memory, slots.BOARD_SEQUENCE)[0] == sequence:
            board: dict[str, Any] = json.loads(payload)
            return board
    raise RuntimeError("the status board changed faster than it could be read")


def _fitted(board: Mapping[str, Any]) -> bytes:
    """JSON of the board in at most one half; the longest texts give way, the facts stay."""
    limit = slots.BOARD_SIZE - _LENGTH.size
    payload = _compact(board)
    for width in (400, 100, 20, 0):
        if len(payload) <= limit:
            return payload
        shortened = dict(board)
        shortened["messages"] = [text[:width] for text in list(board.get("messages", ()))[-8:]]
        shortened["replicas"] = [
            {**replica, "reason": str(replica.get("reason", ""))[:width]}
            for replica in board.get("replicas", ())
        ]
        payload = _compact(shortened)
    if len(payload) > limit:
        raise ValueError(f"the status board needs {len(payload)} bytes even without its texts")
    return payload


def _compact(board: Mapping[str, Any]) -> bytes:
    return json.dumps(board, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def exposition(counted: Snapshot, board: Mapping[str, Any]) -> bytes:
    """The answer to a Prometheus scrape. The first call imports prometheus_client (about 0.1 s)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counted, board))
    return generate_latest(registry)


@dataclass(frozen=True, slots=True, eq=False)
class _Collector:
    """Gives prometheus_client one snapshot, family by family."""

    counted: Snapshot
    board: Mapping[str, Any]

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._durations()
        yield from self._instance()
        yield from self._replicas()

    def _requests(self) -> Iterator[Metric]:
        cells = self.counted.cells
        by_status = [(str(status), cells[cell]) for status, cell in STATUS_CELL.items()]
        by_status.append(("other", cells[OTHER_STATUS]))
        yield _counter("requests", "Requests answered", "status", by_status)
        for name, help_text, cell in (
            ("requests_abandoned", "Requests whose client left before the answer", CLIENT_GONE),
            ("requests_replayed", "Requests offered to a second replica after the first died", REPLAYED),
            ("requests_refused", "Requests refused because they kill replicas", REFUSED),
            ("requests_past_deadline", "Requests answered 500 because their time was up", DEADLINE),
            ("request_bytes", "Bytes of request bodies", BYTES_IN),
            ("response_bytes", "Bytes of answer bodies", BYTES_OUT),
            ("connections", "Connections accepted", ACCEPTED_CONNECTIONS),
        ):
            yield _counter(name, help_text, "", [("", cells[cell])])
        dropped = [("access", cells[ACCESS_DROPPED]), ("predict", cells[PREDICT_DROPPED])]
        yield _counter("log_lines_dropped", "Log lines that could not be written", "stream", dropped)

    def _durations(self) -> Iterator[Metric]:
        yield _histogram("queue", "Time from hand-in to a replica", self.counted.cells, QUEUE)
        yield _histogram("predict", "Time in predict()", self.counted.cells, PREDICT)
        yield _histogram("encode", "Time to encode the answer", self.counted.cells, ENCODE)
        yield _histogram("request", "Time from the request's head to its answer", self.counted.cells, TOTAL)

    def _instance(self) -> Iterator[Metric]:
        cells, board = self.counted.cells, self.board
        yield _gauge("connections_open", "Connections open now", "", [("", cells[OPEN_CONNECTIONS])])
        yield _gauge("requests_inside", "Requests that hold a slot now", "", [("", cells[REQUESTS_INSIDE])])
        yield _gauge("queue_depth", "Requests that wait for a replica now", "", [("", self.counted.queued)])
        yield _gauge("ready", "1 while predict requests can be served", "", [("", is_ready(board))])
        started = board.get("started", 0)
        yield _gauge("start_time_seconds", "Start of the instance, Unix time", "", [("", started)])

    def _replicas(self) -> Iterator[Metric]:
        replicas = self.board.get("replicas", [])
        states = [replica.get("state") for replica in replicas]
        yield _gauge("replicas", "Replicas by state", "state", [(s, states.count(s)) for s in REPLICA_STATES])
        memory = [(str(r["index"]), int(r.get("memory_mb", 0) * 1e6)) for r in replicas]
        yield _gauge("replica_memory_bytes", "Memory of a replica (PSS)", "replica", memory)
        served = [(str(index), count) for index, count in enumerate(self.counted.served)]
        yield _counter("replica_requests", "Requests a replica has handled", "replica", served)
        restarts = list(self.board.get("restarts", {}).items())
        yield _counter("replica_restarts", "Replicas replaced, by reason", "reason", restarts)


def is_ready(board: Mapping[str, Any]) -> bool:
    """Whether the instance can answer predict requests, by its own account."""
    return board.get("state") in ("ready", "degraded")


def _counter(name: str, help_text: str, label: str, samples: Iterable[tuple[str, float]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily("twofold_" + name, help_text, labels=[label] if label else [])
    for value, count in samples:
        family.add_metric([value] if label else [], count)
    return family


def _gauge(name: str, help_text: str, label: str, samples: Iterable[tuple[str, float]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("twofold_" + name, help_text, labels=[label] if label else [])
    for value, amount in samples:
        family.add_metric([value] if label else [], amount)
    return family


def _histogram(name: str, help_text: str, cells: tuple[int, ...], start: int) -> HistogramMetricFamily:
    from prometheus_client.core import HistogramMetricFamily

    counts = cells[start : start + BUCKETS]
    shown = [(repr(2**i / 1e6), float(sum(counts[: i + 1]))) for i in SHOWN_BUCKETS]
    shown.append(("+Inf", float(sum(counts))))
    family = HistogramMetricFamily(f"twofold_{name}_seconds", help_text)
    family.add_metric([], shown, cells[start + SUM] / 1e6)
    return family
