"""What an instance shows, as Prometheus' own parser reads it."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from twofold.server.replica import slots
from twofold.server.telemetry import instance_status, metrics, prometheus
from twofold.server.telemetry.instance_status import ReplicaStatus
from twofold.telemetry.histograms import observe

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


def replica(index: int, state: str, memory_mb: float) -> ReplicaStatus:
    return {
        "index": index, "pid": 7, "state": state, "restarts": 0, "reason": "", "load_seconds": 0.1,
        "memory_mb": memory_mb,
    }  # fmt: skip


def test_exposition_is_what_prometheus_reads(memory: mmap.mmap) -> None:
    counters = metrics.open_counters(memory, 1)
    for microseconds in (0, 10, 100, 1000, 10**6, 2**31):
        observe(counters.cells, metrics.PREDICT, microseconds)
    counters.cells[metrics.STATUS_CELL[503]] += 4
    counters.flush()
    counters.close()
    instance_status.publish(memory, {
        "state": "degraded", "started": 1000, "restarts": {'out of memory, "killed"\n': 2},
        "replicas": [replica(0, "ready", 1.5), replica(1, "backoff", 0.0)],
    })  # fmt: skip
    text = prometheus.exposition(metrics.snapshot(memory, LAYOUT, 3, 2), instance_status.read(memory))
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
    found = samples(prometheus.exposition(metrics.snapshot(memory, LAYOUT), instance_status.read(memory)))
    assert found["twofold_ready", ()] == 0
    assert found["twofold_requests_total", (("status", "200"),)] == 0
    assert found["twofold_replicas", (("state", "ready"),)] == 0
    assert json.dumps(sorted({name for name, _ in found})).count("twofold_") == len({n for n, _ in found})
