"""What a batch of requests does to the counters of a proxy."""

from __future__ import annotations

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.request_counts import count
from twofold.logs.records import AccessRecord
from twofold.telemetry.histograms import SUM


def record(status: int, upstream_us: int, total_us: int) -> AccessRecord:
    return 0, b"POST /predict 1.1", status, upstream_us, b"id", 100, total_us


def test_status_bytes_and_times() -> None:
    cells = [0] * shared_memory.CELLS
    batch = [record(200, 30, 40), record(200, 50, 70), record(429, 0, 5), record(418, 0, 0)]
    assert count(cells, batch) == batch
    assert cells[shared_memory.STATUS_CELL[200]] == 2 and cells[shared_memory.STATUS_CELL[429]] == 1
    assert cells[shared_memory.OTHER_STATUS] == 1 and cells[shared_memory.BYTES_OUT] == 400
    assert cells[shared_memory.LATENCY + SUM] == 115
    assert sum(cells[shared_memory.LATENCY : shared_memory.LATENCY + SUM]) == 4
    assert cells[shared_memory.UPSTREAM + SUM] == 80, "a request that no instance was asked for took none"
    assert sum(cells[shared_memory.UPSTREAM : shared_memory.UPSTREAM + SUM]) == 2
