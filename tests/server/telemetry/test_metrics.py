"""Counter blocks, and snapshots over several writers."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from twofold.server.replica import slots
from twofold.server.telemetry import metrics
from twofold.telemetry import histograms

LAYOUT = slots.Layout(2, 4, 4096, 4096)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, LAYOUT.size) as mapped:
        yield mapped


def test_cells_do_not_overlap() -> None:
    singles = [*metrics.STATUS_CELL.values(), metrics.OTHER_STATUS, metrics.CLIENT_GONE]
    singles += [cell for name, cell in vars(metrics).items() if name in (
        "BYTES_IN", "BYTES_OUT", "REPLAYED", "REFUSED", "DEADLINE", "OPEN_CONNECTIONS",
        "ACCEPTED_CONNECTIONS", "REQUESTS_INSIDE", "ACCESS_DROPPED", "PREDICT_DROPPED",
    )]  # fmt: skip
    assert len(singles) == len(set(singles)) == 26
    assert max(singles) < metrics.QUEUE
    assert metrics.TOTAL + histograms.SUM < metrics.CELLS <= slots.COUNTERS_SIZE // 8


def test_a_snapshot_sums_fronts_log_writer_and_replicas(memory: mmap.mmap) -> None:
    for block, count in ((0, 3), (1, 4), (metrics.LOG_WRITER, 5)):
        counters = metrics.open_counters(memory, block)
        counters.cells[metrics.STATUS_CELL[200]] += count
        counters.cells[metrics.PREDICT_DROPPED] += 1
        counters.flush()
        counters.close()
    slots.REPLICA_WORDS.pack_into(
        memory, slots.REPLICA_WORDS_OFFSET + slots.REPLICA_WORDS_SIZE, 70, 9, *[0] * 6
    )
    counted = metrics.snapshot(memory, LAYOUT, queued=2, replicas=2)
    assert counted.cells[metrics.STATUS_CELL[200]] == counted.answered() == 12
    assert counted.cells[metrics.PREDICT_DROPPED] == 3 + 9
    assert counted.served == (0, 70)
    assert counted.queued == 2


def test_counts_are_private_until_flushed_and_survive_their_owner(memory: mmap.mmap) -> None:
    first = metrics.open_counters(memory, 0)
    first.cells[metrics.REPLAYED] = 2
    assert metrics.snapshot(memory, LAYOUT).cells[metrics.REPLAYED] == 0
    first.cells[metrics.OPEN_CONNECTIONS] = 17
    first.flush()
    assert metrics.snapshot(memory, LAYOUT).cells[metrics.OPEN_CONNECTIONS] == 17
    second = metrics.open_counters(memory, 0)
    assert second.cells[metrics.REPLAYED] == 2
    after = metrics.snapshot(memory, LAYOUT)
    assert after.cells[metrics.REPLAYED] == 2, "a counter never runs backwards"
    assert after.cells[metrics.OPEN_CONNECTIONS] == 0, "connections die with their front"
    first.close()
    second.close()
