"""What a batch of requests does to the counters of a front."""

from __future__ import annotations

from twofold.server.front.exchange import GONE
from twofold.server.front.request_counts import CountedRequest, count
from twofold.server.telemetry import metrics
from twofold.telemetry.histograms import SUM


def entry(status: int, spent_us: int = 0) -> CountedRequest:
    """With `spent_us` in predict(), twice that in all, a byte of body for each us, and 60 bytes of answer."""
    record = (0, b"POST /predict 1.1", status, spent_us, b"id", 100, 2 * spent_us)
    return record, 7, 3, spent_us, 60


def test_status_bytes_and_the_times_of_answers_alone() -> None:
    cells = [0] * metrics.CELLS
    batch = [entry(200, 10), entry(503, 1000), entry(200, 40), entry(GONE), entry(418)]
    assert count(cells, batch) == [each[0] for each in batch]
    assert cells[metrics.STATUS_CELL[200]] == 2 and cells[metrics.STATUS_CELL[503]] == 1
    assert cells[metrics.CLIENT_GONE] == 1 and cells[metrics.OTHER_STATUS] == 1
    assert cells[metrics.BYTES_IN] == 1050 and cells[metrics.BYTES_OUT] == 300
    assert cells[metrics.PREDICT + (10).bit_length()] == cells[metrics.PREDICT + (40).bit_length()] == 1
    starts = (metrics.PREDICT, metrics.TOTAL, metrics.QUEUE, metrics.ENCODE)
    assert [cells[start + SUM] for start in starts] == [50, 100, 14, 6]
    assert sum(cells[metrics.PREDICT : metrics.PREDICT + SUM]) == 2


def test_batches_add_up() -> None:
    singly, together = [0] * metrics.CELLS, [0] * metrics.CELLS
    batch = [entry(200, number) for number in range(50)] + [entry(400)]
    for each in batch:
        count(singly, [each])
    count(together, batch)
    assert singly == together
