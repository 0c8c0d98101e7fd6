"""How a front counts a batch of requests: by status, by bytes, and by how long they took.

Pure.
"""

from __future__ import annotations

from itertools import compress

from twofold.logs.records import AccessRecord
from twofold.server.front.exchange import GONE
from twofold.server.telemetry import metrics
from twofold.telemetry.histograms import observe_all

# the access record, microseconds in the queue and in encoding, bytes of the request's and the answer's body
CountedRequest = tuple[AccessRecord, int, int, int, int]


def count(cells: list[int], batch: list[CountedRequest]) -> list[AccessRecord]:
    """Add a batch, which is not empty, to the counters; return its access records.

    Column by column: that costs half of what a loop over rows does.
    """
    records, queues, encodes, received, returned = zip(*batch, strict=True)
    _, _, statuses, predicts, _, _, totals = zip(*records, strict=True)
    cells[metrics.BYTES_IN] += sum(received)
    cells[metrics.BYTES_OUT] += sum(returned)
    for status in set(statuses):
        other = metrics.CLIENT_GONE if status == GONE else metrics.OTHER_STATUS
        cells[metrics.STATUS_CELL.get(status, other)] += statuses.count(status)
    if statuses.count(200) != len(statuses):  # durations are those of answers alone
        good = [status == 200 for status in statuses]
        queues, predicts, encodes, totals = (
            tuple(compress(column, good)) for column in (queues, predicts, encodes, totals)
        )
    observe_all(cells, metrics.QUEUE, queues)
    observe_all(cells, metrics.PREDICT, predicts)
    observe_all(cells, metrics.ENCODE, encodes)
    observe_all(cells, metrics.TOTAL, totals)
    return list(records)
