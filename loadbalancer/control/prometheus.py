"""The metrics of the load balancer in the Prometheus format.

Pure; imported at the first scrape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.sliding_window import REFUSALS, Reading, SlidingWindow
from twofold.loadbalancer.control.status_view import FAILURES, UNSEEN, StatusFacts, shown_state, statuses
from twofold.telemetry import prometheus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

FAMILIES = prometheus.Families("twofold_balance_")
STATES = ("up", "down", "drain", "ejected")


def exposition(facts: StatusFacts, recent: SlidingWindow, reading: Reading) -> bytes:
    """The response to a scrape."""
    return prometheus.exposition(_families(facts, recent, reading))


def _families(facts: StatusFacts, recent: SlidingWindow, reading: Reading) -> Iterator[Metric]:
    yield from _requests(facts, reading.cells)
    yield from _durations(reading.cells)
    yield from _bandwidth(facts, recent, reading.cells)
    yield from _instances(facts, reading)


def _requests(facts: StatusFacts, cells: Sequence[int]) -> Iterator[Metric]:
    yield FAMILIES.counters("requests", "Requests answered", "status", statuses(cells))
    refused = [(reason, cells[cell]) for reason, cell in REFUSALS.items()]
    refused.append(("unauthorised", cells[shared_memory.UNAUTHORISED]))
    yield FAMILIES.counters("refused", "Requests refused, by reason", "reason", refused)
    for name, help_text, cell in (
        ("retries", "Requests given to a second instance", shared_memory.RETRIED),
        ("retries_denied", "Second attempts that were not allowed", shared_memory.RETRY_DENIED),
        ("connections", "Connections accepted", shared_memory.ACCEPTED),
        ("upstream_connections", "Connections made to instances", shared_memory.UPSTREAM_OPENED),
        ("access_log_lines_dropped", "Lines that could not be written", shared_memory.ACCESS_DROPPED),
    ):
        yield FAMILIES.counter(name, help_text, cells[cell])
    for name, help_text, cell in (
        ("connections_open", "Connections of clients open now", shared_memory.OPEN_CONNECTIONS),
        ("upstream_connections_open", "Connections to instances open now", shared_memory.UPSTREAM_OPEN),
        ("requests_inside", "Requests in the hands of instances now", shared_memory.INSIDE),
        ("requests_waiting", "Requests that wait for an instance now", shared_memory.WAITING),
    ):
        yield FAMILIES.gauge(name, help_text, cells[cell])
    if facts.certificate_expires:
        yield FAMILIES.gauge(
            "certificate_expires_timestamp_seconds", "When it does: Unix time", facts.certificate_expires
        )


def _durations(cells: Sequence[int]) -> Iterator[Metric]:
    for name, help_text, start in (
        ("request", "From a request's head to the end of its answer", shared_memory.LATENCY),
        ("upstream", "From the hand-over to the instance's answer", shared_memory.UPSTREAM),
        ("queue", "What requests waited for an instance", shared_memory.QUEUE),
    ):
        yield FAMILIES.histogram(name, help_text, cells, start)


def _bandwidth(facts: StatusFacts, recent: SlidingWindow, cells: Sequence[int]) -> Iterator[Metric]:
    yield FAMILIES.counter("received_bytes", "HTTP bytes from clients", cells[shared_memory.BYTES_IN])
    yield FAMILIES.counter("sent_bytes", "HTTP bytes to clients", cells[shared_memory.BYTES_OUT])
    for name, help_text, value in (
        ("bandwidth_limit_bits_per_second", "Bits that may pass in a second; 0 is unlimited", facts.rate),
        ("bandwidth_utilisation_percent", "Part of it that is used", 100 * recent.utilisation()),
        ("bandwidth_debt_bits", "Bits that have passed ahead of their time", facts.debt),
        ("streams_throttled", "Streams that wait for bandwidth now", cells[shared_memory.THROTTLED]),
    ):
        yield FAMILIES.gauge(name, help_text, value)
    yield FAMILIES.histogram(
        "throttle", "Time that messages waited for bandwidth", cells, shared_memory.THROTTLE
    )


def _instances(facts: StatusFacts, reading: Reading) -> Iterator[Metric]:
    rows = [(one, reading.instances.get(one.name, UNSEEN)) for one in facts.endpoints]
    states, failures = [], []
    for endpoint, sight in rows:
        present = shown_state(endpoint, sight, reading.at_ns)
        states += [((endpoint.name, each), float(present == each)) for each in STATES]
        failures += [((endpoint.name, kind), sight.words[cell]) for kind, cell in FAILURES.items()]
    yield FAMILIES.gauges("instance_state", "1 for the state that it is in", ("instance", "state"), states)
    yield FAMILIES.counters("instance_failures", "Requests that it failed", ("instance", "kind"), failures)
    gauges, counters = FAMILIES.gauges, FAMILIES.counters
    for name, help_text, cell, make in (
        ("instance_outstanding", "Requests in its hands now", shared_memory.OUTSTANDING, gauges),
        ("instance_credits", "Requests that it would be given at once", shared_memory.CREDITS, gauges),
        ("instance_requests", "Requests that it was given", shared_memory.REQUESTS, counters),
        ("instance_retries", "Second attempts that it was given", shared_memory.RETRIES, counters),
        ("instance_ejections", "Times that proxies took it out", shared_memory.EJECTIONS, counters),
    ):
        yield make(name, help_text, "instance", [(one.name, sight.words[cell]) for one, sight in rows])
    workers = [(one.name, one.workers) for one, _ in rows]
    yield FAMILIES.gauges("instance_workers", "Replicas that it says are ready", "instance", workers)
    latency_s = [(one.name, sight.latency_us / 1e6) for one, sight in rows]
    yield FAMILIES.gauges("instance_latency_seconds", "Moving average of its latency", "instance", latency_s)
