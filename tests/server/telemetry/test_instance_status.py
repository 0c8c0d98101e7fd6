"""The status of an instance as fronts read it: before the first one, and when it is too long."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from twofold.server.replica import slots
from twofold.server.telemetry import instance_status
from twofold.server.telemetry.instance_status import ReplicaStatus

LAYOUT = slots.Layout(2, 4, 4096, 4096)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, LAYOUT.size) as mapped:
        yield mapped


def test_status_round_trip_and_before_the_first(memory: mmap.mmap) -> None:
    assert instance_status.read(memory)["state"] == "starting"
    for state in ("starting", "ready", "draining"):
        instance_status.publish(memory, {"state": state, "messages": ["Grüße, 世界"]})
        assert instance_status.read(memory) == {"state": state, "messages": ["Grüße, 世界"]}


def test_a_status_that_is_too_long_keeps_its_facts(memory: mmap.mmap) -> None:
    replicas: list[ReplicaStatus] = [
        {"index": i, "pid": 10**6 + i, "state": "backoff", "restarts": 10**4, "reason": "é" * 3000,
         "load_seconds": 12.345678, "memory_mb": 12345.678}
        for i in range(slots.MAX_REPLICAS)
    ]  # fmt: skip
    instance_status.publish(memory, {"state": "failed", "messages": ["x" * 10**5] * 50, "replicas": replicas})
    status = instance_status.read(memory)
    assert [r["pid"] for r in status["replicas"]] == [r["pid"] for r in replicas]
    assert 0 < len(status["replicas"][0]["reason"]) < 3000
    assert len(status["messages"]) == 8
    with pytest.raises(ValueError, match="status needs"):
        instance_status.publish(memory, {"state": "ready", "artifact": "x" * slots.STATUS_SIZE})
    assert instance_status.read(memory)["state"] == "failed", "a refused status leaves the last one"
