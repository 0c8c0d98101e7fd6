"""What the load balancer counts, for Prometheus.

Pure; imported at the first scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.sliding_window import REFUSALS, Reading, SlidingWindow
from twofold.loadbalancer.control.status_view import FAILURES, UNSEEN, StatusFacts, shown_state, statuses

PREFIX = "twofold_balance_"
STATES = ("up", "down", "drain", "ejected")

# Buckets shown to Prometheus: 2**4 us (16 us) to 2**27 us (134 s); the rest is folded into the ends.
SHOWN_BUCKETS = range(4, 28)


def exposition(facts: StatusFacts, recent: SlidingWindow, reading: Reading) -> bytes:
    """The answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(facts, recent, reading))
    return generate_latest(registry)


@dataclass(frozen=True, slots=True, eq=False)
class _Collected(Collector):
    facts: StatusFacts
    recent: SlidingWindow
    reading: Reading

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._bandwidth()
        yield from self._instances()

    def _requests(self) -> Iterator[Metric]:
        cells = self.reading.cells
        yield _counter("requests", "Requests answered", "status", statuses(cells))
        refused = [(reason, cells[cell]) for reason, cell in REFUSALS.items()]
        refused.append(("unauthorised", cells[shared_memory.UNAUTHORISED]))
        yield _counter("refused", "Requests refused, by reason", "reason", refused)
        for name, help_text, cell in (
            ("retries", "Requests given to a second instance", shared_memory.RETRIED),
            ("retries_denied", "Second attempts that were not allowed", shared_memory.RETRY_DENIED),
            ("connections", "Connections accepted", shared_memory.ACCEPTED),
            ("upstream_connections", "Connections made to instances", shared_memory.UPSTREAM_OPENED),
            ("access_log_lines_dropped", "Lines that could not be written", shared_memory.ACCESS_DROPPED),
        ):
            yield _counter(name, help_text, "", [("", cells[cell])])
        for name, help_text, cell in (
            ("connections_open", "Connections of clients open now", shared_memory.OPEN_CONNECTIONS),
            ("upstream_connections_open", "Connections to instances open now", shared_memory.UPSTREAM_OPEN),
            ("requests_inside", "Requests in the hands of instances now", shared_memory.INSIDE),
            ("requests_waiting", "Requests that wait for an instance now", shared_memory.WAITING),
        ):
            yield _gauge(name, help_text, "", [("", cells[cell])])
        if self.facts.certificate_expires:
            expires = [("", float(self.facts.certificate_expires))]
            yield _gauge("certificate_expires_timestamp_seconds", "When it does: Unix time", "", expires)
        yield _histogram(
            "request", "From a request's head to the end of its answer", cells, shared_memory.LATENCY
        )
        yield _histogram(
            "upstream", "From the hand-over to the instance's answer", cells, shared_memory.UPSTREAM
        )
        yield _histogram("queue", "What requests waited for an instance", cells, shared_memory.QUEUE)

    def _bandwidth(self) -> Iterator[Metric]:
        cells, facts = self.reading.cells, self.facts
        yield _counter("received_bytes", "HTTP bytes from clients", "", [("", cells[shared_memory.BYTES_IN])])
        yield _counter("sent_bytes", "HTTP bytes to clients", "", [("", cells[shared_memory.BYTES_OUT])])
        for name, help_text, value in (
            ("bandwidth_limit_bits_per_second", "Bits that may pass in a second; 0 is unlimited", facts.rate),
            ("bandwidth_utilisation_percent", "Part of it that is used", 100 * self.recent.utilisation()),
            ("bandwidth_debt_bits", "Bits that have passed ahead of their time", facts.debt),
            ("streams_throttled", "Streams that wait for bandwidth now", cells[shared_memory.THROTTLED]),
        ):
            yield _gauge(name, help_text, "", [("", value)])
        yield _histogram("throttle", "Time that messages waited for bandwidth", cells, shared_memory.THROTTLE)

    def _instances(self) -> Iterator[Metric]:
        seen = self.reading.instances
        rows = [(endpoint, seen.get(endpoint.name, UNSEEN)) for endpoint in self.facts.endpoints]
        states = GaugeMetricFamily(
            PREFIX + "instance_state", "1 for the state that it is in", labels=["instance", "state"]
        )
        failures = CounterMetricFamily(
            PREFIX + "instance_failures", "Requests that it failed", labels=["instance", "kind"]
        )
        for endpoint, sight in rows:
            present = shown_state(endpoint, sight, self.reading.at)
            for each in STATES:
                states.add_metric([endpoint.name, each], float(present == each))
            for kind, cell in FAILURES.items():
                failures.add_metric([endpoint.name, kind], sight.words[cell])
        yield from (states, failures)
        for name, help_text, cell, make in (
            ("instance_outstanding", "Requests in its hands now", shared_memory.OUTSTANDING, _gauge),
            ("instance_credits", "Requests that it would be given at once", shared_memory.CREDITS, _gauge),
            ("instance_requests", "Requests that it was given", shared_memory.REQUESTS, _counter),
            ("instance_retries", "Second attempts that it was given", shared_memory.RETRIES, _counter),
            ("instance_ejections", "Times that proxies took it out", shared_memory.EJECTIONS, _counter),
        ):
            yield make(name, help_text, "instance", [(one.name, sight.words[cell]) for one, sight in rows])
        workers = [(one.name, one.workers) for one, _ in rows]
        yield _gauge("instance_workers", "Replicas that it says are ready", "instance", workers)
        latency = [(one.name, sight.latency_us / 1e6) for one, sight in rows]
        yield _gauge("instance_latency_seconds", "Moving average of its latency", "instance", latency)


def _counter(name: str, help_text: str, label: str, samples: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, help_text, labels=[label] if label else [])
    for value, count in samples:
        family.add_metric([value] if label else [], count)
    return family


def _gauge(name: str, help_text: str, label: str, samples: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=[label] if label else [])
    for value, amount in samples:
        family.add_metric([value] if label else [], amount)
    return family


def _histogram(name: str, help_text: str, cells: Sequence[int], start: int) -> Metric:
    counts = cells[start : start + shared_memory.BUCKETS]
    shown = [(repr(2**i / 1e6), float(sum(counts[: i + 1]))) for i in SHOWN_BUCKETS]
    shown.append(("+Inf", float(sum(counts))))
    family = HistogramMetricFamily(f"{PREFIX}{name}_seconds", help_text)
    family.add_metric([], shown, cells[start + shared_memory.SUM] / 1e6)
    return family
