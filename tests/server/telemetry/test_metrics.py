"""Counter blocks, snapshots over several writers, the status board under a racing reader, exposition."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from twofold.server.replica import slots
from twofold.server.telemetry import metrics

LAYOUT = slots.Layout(2, 4, 4096, 4096)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, LAYOUT.size) as mapped:
        yield mapped


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_cells_do_not_overlap() -> None:
    singles = [*metrics.STATUS_CELL.values(), metrics.OTHER_STATUS, metrics.CLIENT_GONE]
    singles += [cell for name, cell in vars(metrics).items() if name in (
        "BYTES_IN", "BYTES_OUT", "REPLAYED", "REFUSED", "DEADLINE", "OPEN_CONNECTIONS",
        "ACCEPTED_CONNECTIONS", "REQUESTS_INSIDE", "ACCESS_DROPPED", "PREDICT_DROPPED",
    )]  # fmt: skip
    assert len(singles) == len(set(singles)) == 26
    assert max(singles) < metrics.QUEUE
    assert metrics.TOTAL + metrics.SUM < metrics.CELLS <= slots.COUNTERS_SIZE // 8
    assert (2**32 - 1).bit_length() < metrics.BUCKETS, "any u32 of microseconds has a bucket"


def test_a_snapshot_sums_fronts_log_writer_and_replicas(memory: mmap.mmap) -> None:
    for block, count in ((0, 3), (1, 4), (metrics.LOG_WRITER, 5)):
        counters = metrics.Counters(memory, block)
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
    first = metrics.Counters(memory, 0)
    first.cells[metrics.REPLAYED] = 2
    assert metrics.snapshot(memory, LAYOUT).cells[metrics.REPLAYED] == 0
    first.cells[metrics.OPEN_CONNECTIONS] = 17
    first.flush()
    assert metrics.snapshot(memory, LAYOUT).cells[metrics.OPEN_CONNECTIONS] == 17
    second = metrics.Counters(memory, 0)
    assert second.cells[metrics.REPLAYED] == 2
    after = metrics.snapshot(memory, LAYOUT)
    assert after.cells[metrics.REPLAYED] == 2, "a counter never runs backwards"
    assert after.cells[metrics.OPEN_CONNECTIONS] == 0, "connections die with their front"
    first.close()
    second.close()


def test_board_round_trip_and_before_the_first(memory: mmap.mmap) -> None:
    assert metrics.read_board(memory)["state"] == "starting"
    for state in ("starting", "ready", "draining"):
        metrics.write_board(memory, {"state": state, "messages": ["Grüße, 世界"]})
        assert metrics.read_board(memory) == {"state": state, "messages": ["Grüße, 世界"]}


def test_a_board_that_is_too_long_keeps_its_facts(memory: mmap.mmap) -> None:
    replicas = [
        {"index": i, "pid": 10**6 + i, "state": "backoff", "restarts": 10**4, "reason": "é" * 3000,
         "load_seconds": 12.345678, "memory_mb": 12345.678}
        for i in range(slots.MAX_REPLICAS)
    ]  # fmt: skip
    metrics.write_board(memory, {"state": "failed", "messages": ["x" * 10**5] * 50, "replicas": replicas})
    board = metrics.read_board(memory)
    assert [r["pid"] for r in board["replicas"]] == [r["pid"] for r in replicas]
    assert 0 < len(board["replicas"][0]["reason"]) < 3000
    assert len(board["messages"]) == 8
    with pytest.raises(ValueError, match="status board needs"):
        metrics.write_board(memory, {"state": "ready", "artifact": "x" * slots.BOARD_SIZE})
    assert metrics.read_board(memory)["state"] == "failed", "a refused board leaves the last one"


def test_a_racing_reader_never_sees_half_a_board(memory: mmap.mmap) -> None:
    writer = os.fork()
    if writer == 0:
        number = 0
        while True:
            number += 1
            metrics.write_board(memory, {"n": number, "text": chr(97 + number % 26) * (number * 37 % 3000)})
    try:
        seen = set()
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            board = metrics.read_board(memory)
            if "n" in board:
                number = board["n"]
                assert board["text"] == chr(97 + number % 26) * (number * 37 % 3000)
                seen.add(number)
        assert len(seen) > 50
    finally:
        os.kill(writer, 9)
        os.waitpid(writer, 0)


def test_exposition_is_what_prometheus_reads(memory: mmap.mmap) -> None:
    counters = metrics.Counters(memory, 1)
    for microseconds in (0, 10, 100, 1000, 10**6, 2**31):
        counters.cells[metrics.PREDICT + microseconds.bit_length()] += 1
        counters.cells[metrics.PREDICT + metrics.SUM] += microseconds
    counters.cells[metrics.STATUS_CELL[503]] += 4
    counters.flush()
    counters.close()
    metrics.write_board(memory, {
        "state": "degraded", "started": 1000, "restarts": {'out of memory, "killed"\n': 2},
        "replicas": [{"index": 0, "state": "ready", "memory_mb": 1.5}, {"index": 1, "state": "backoff"}],
    })  # fmt: skip
    text = metrics.exposition(metrics.snapshot(memory, LAYOUT, 3, 2), metrics.read_board(memory))
    found = samples(text)
    assert found["twofold_requests_total", (("status", "503"),)] == 4
    assert found["twofold_queue_depth", ()] == 3
    assert found["twofold_ready", ()] == 1
    assert found["twofold_replicas", (("state", "backoff"),)] == 1
    assert found["twofold_replica_memory_bytes", (("replica", "0"),)] == 1.5e6
    assert found["twofold_replica_restarts_total", (("reason", 'out of memory, "killed"\n'),)] == 2
    assert found["twofold_predict_seconds_count", ()] == 6
    assert found["twofold_predict_seconds_sum", ()] == pytest.approx((10 + 100 + 1000 + 10**6 + 2**31) / 1e6)
    buckets = {
        float(dict(labels)["le"]): count
        for (name, labels), count in found.items()
        if name == "twofold_predict_seconds_bucket"
    }
    assert buckets[16e-6] == 2
    assert buckets[128e-6] == 3
    assert buckets[2**20 / 1e6] == 5
    assert buckets[float("inf")] == 6
    assert list(buckets.values()) == sorted(buckets.values()), "cumulative"


def test_exposition_of_an_instance_that_has_just_begun(memory: mmap.mmap) -> None:
    found = samples(metrics.exposition(metrics.snapshot(memory, LAYOUT), metrics.read_board(memory)))
    assert found["twofold_ready", ()] == 0
    assert found["twofold_requests_total", (("status", "200"),)] == 0
    assert found["twofold_replicas", (("state", "ready"),)] == 0
    assert json.dumps(sorted({name for name, _ in found})).count("twofold_") == len({n for n, _ in found})
