"""The counts and the status of an instance as metrics of Prometheus.

Pure.  Imported at the first scrape, because prometheus_client takes 0.1 s to import.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from twofold.server.telemetry import metrics
from twofold.server.telemetry.instance_status import InstanceStatus, is_ready
from twofold.server.telemetry.metrics import Snapshot
from twofold.telemetry import prometheus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

FAMILIES = prometheus.Families("twofold_")
REPLICA_STATES = ("loading", "ready", "spare", "backoff", "dead")


def exposition(counted: Snapshot, status: InstanceStatus) -> bytes:
    """The body of the answer to a scrape. `status`: the result of instance_status.read()."""
    return prometheus.exposition(_families(counted, status))


def _families(counted: Snapshot, status: InstanceStatus) -> Iterator[Metric]:
    yield from _requests(counted.cells)
    yield from _durations(counted.cells)
    yield from _instance(counted, status)
    yield from _replicas(counted, status)


def _requests(cells: tuple[int, ...]) -> Iterator[Metric]:
    by_status = [(str(status), cells[cell]) for status, cell in metrics.STATUS_CELL.items()]
    by_status.append(("other", cells[metrics.OTHER_STATUS]))
    yield FAMILIES.counters("requests", "Requests answered", "status", by_status)
    for name, help_text, cell in (
        ("requests_abandoned", "Requests whose client left before the answer", metrics.CLIENT_GONE),
        ("requests_replayed", "Requests offered to a second replica after the first died", metrics.REPLAYED),
        ("requests_refused", "Requests refused because they kill replicas", metrics.REFUSED),
        ("requests_past_deadline", "Requests answered 500 because their time was up", metrics.DEADLINE),
        ("request_bytes", "Bytes of request bodies", metrics.BYTES_IN),
        ("response_bytes", "Bytes of answer bodies", metrics.BYTES_OUT),
        ("connections", "Connections accepted", metrics.ACCEPTED_CONNECTIONS),
    ):
        yield FAMILIES.counter(name, help_text, cells[cell])
    dropped = [("access", cells[metrics.ACCESS_DROPPED]), ("predict", cells[metrics.PREDICT_DROPPED])]
    yield FAMILIES.counters("log_lines_dropped", "Log lines that could not be written", "stream", dropped)


def _durations(cells: tuple[int, ...]) -> Iterator[Metric]:
    for name, help_text, start in (
        ("queue", "Time from hand-in to a replica", metrics.QUEUE),
        ("predict", "Time in predict()", metrics.PREDICT),
        ("encode", "Time to encode the answer", metrics.ENCODE),
        ("request", "Time from the request's head to its answer", metrics.TOTAL),
    ):
        yield FAMILIES.histogram(name, help_text, cells, start)


def _instance(counted: Snapshot, status: InstanceStatus) -> Iterator[Metric]:
    cells = counted.cells
    for name, help_text, amount in (
        ("connections_open", "Connections open now", cells[metrics.OPEN_CONNECTIONS]),
        ("requests_inside", "Requests that hold a slot now", cells[metrics.REQUESTS_INSIDE]),
        ("queue_depth", "Requests that wait for a replica now", counted.queued),
        ("ready", "1 while predict requests can be served", is_ready(status)),
        ("start_time_seconds", "Start of the instance, Unix time", status.get("started", 0)),
    ):
        yield FAMILIES.gauge(name, help_text, amount)


def _replicas(counted: Snapshot, status: InstanceStatus) -> Iterator[Metric]:
    replicas = status.get("replicas", [])
    states = [replica.get("state") for replica in replicas]
    by_state = [(state, states.count(state)) for state in REPLICA_STATES]
    yield FAMILIES.gauges("replicas", "Replicas by state", "state", by_state)
    memory = [(str(each["index"]), int(each.get("memory_mb", 0) * 1e6)) for each in replicas]
    yield FAMILIES.gauges(
        "replica_memory_bytes", "Private memory of a replica when it became ready", "replica", memory
    )
    served = [(str(index), count) for index, count in enumerate(counted.served)]
    yield FAMILIES.counters("replica_requests", "Requests a replica has handled", "replica", served)
    restarts = list(status.get("restarts", {}).items())
    yield FAMILIES.counters("replica_restarts", "Replicas replaced, by reason", "reason", restarts)
