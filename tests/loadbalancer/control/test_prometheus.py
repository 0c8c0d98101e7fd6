"""What is shown: the state, and the metrics as Prometheus' own parser reads them."""

from __future__ import annotations

from mmap import mmap

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.loadbalancer.controller_process import FakeProxy
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control import prometheus, status_view
from twofold.loadbalancer.control.sliding_window import SlidingWindow, read
from twofold.loadbalancer.endpoint_record import EndpointRecord
from twofold.telemetry.histograms import observe

SECOND = 1_000_000_000
PREFIX = "twofold_balance_"
A, B = "http://127.0.0.1:9001", "unix:/run/b.sock"


def endpoint(name: str, cell: int, shown: str = "up") -> EndpointRecord:
    return EndpointRecord(name, cell, shown, workers=2)


ENDPOINTS = [endpoint(A, 0), endpoint(B, 1)]
FACTS = status_view.StatusFacts("0.1", 1700000000.0, 10_000_000, 8000, 10.0, 0.0, ENDPOINTS, 1800000000)


@pytest.fixture
def shared() -> mmap:
    return shared_memory.attach(shared_memory.create())


def play(shared: mmap) -> tuple[SlidingWindow, FakeProxy]:
    """Ten seconds: 30 requests to A, 10 to B, five refusals, one failure."""
    recent, proxy = SlidingWindow(), FakeProxy(shared)
    for second in range(11):
        proxy.instance(
            0,
            {
                shared_memory.CREDITS: 4,
                shared_memory.REQUESTS: 3 * second,
                shared_memory.LATENCY_SUM_US: 6000 * second,
            },
        )
        proxy.instance(
            1,
            {
                shared_memory.CREDITS: 4,
                shared_memory.REQUESTS: second,
                shared_memory.LATENCY_SUM_US: 9000 * second,
            },
        )
        recent.hear(read(shared, {A: 0, B: 1}, second * SECOND), FACTS.rate)
        if second < 10:
            proxy.answer(4, us=1500, sizes=(10_000, 2_500))
    proxy.answer(5, status=429)
    proxy.answer(1, status=500)
    proxy.answer(2, status=503)
    proxy.set(shared_memory.REFUSED_BANDWIDTH, 5)
    proxy.set(shared_memory.REFUSED_QUEUE, 2)
    proxy.set(shared_memory.INSIDE, 3)
    recent.hear(read(shared, {A: 0, B: 1}, 11 * SECOND), FACTS.rate)
    return recent, proxy


def test_the_state(shared: mmap) -> None:
    recent, _ = play(shared)
    shown = status_view.state(FACTS, recent, read(shared, {A: 0, B: 1}, 11 * SECOND))
    band, asked = shown["bandwidth"], shown["requests"]
    assert (band["mbps"], band["minimum_mbps"], band["maximum_mbps"], band["debt_bytes"]) == (
        10,
        10,
        10,
        1000,
    )
    assert (band["in_bytes"], band["out_bytes"]) == (400_000, 100_000)
    assert band["utilisation"] == pytest.approx(0.4 * 10 / 11 / 10, rel=0.05)
    assert asked["total"] == 48 and asked["by_status"] == {"200": 40, "429": 5, "500": 1, "503": 2}
    assert asked["refused"] == {"bandwidth": 5, "rate": 0, "caller": 0, "queue": 2, "down": 0}
    assert asked["failed_per_second"] == pytest.approx(1 / 11, abs=0.01)  # a refusal of ours is none
    assert asked["inside"] == 3
    assert 1 < shown["latency_ms"]["p50"] < 2.05 and shown["throttled_ms"] == {"p50": None, "p99": None}


def test_the_instances(shared: mmap) -> None:
    recent, proxy = play(shared)
    proxy.instance(
        1,
        {shared_memory.OUTSTANDING: 2, shared_memory.EJECTED_UNTIL: 13 * SECOND, shared_memory.EJECTIONS: 1},
    )
    proxy.instance(
        1,
        {
            shared_memory.FIVEXX: 5,
            shared_memory.CONNECT_ERRORS: 3,
            shared_memory.TIMEOUTS: 2,
            shared_memory.BROKEN: 1,
        },
    )
    one, other = status_view.instances(ENDPOINTS, recent, read(shared, {A: 0, B: 1}, 11 * SECOND))
    assert (one["share"], other["share"]) == (0.75, 0.25)
    assert (one["latency_ms"], other["latency_ms"]) == (2.0, 9.0)
    assert one["per_second"] == pytest.approx(30 / 11, abs=0.01)
    assert one["state"] == "up" and other["state"] == "ejected" and other["ejected_s"] == 2.0
    assert other["outstanding"] == 2 and other["ejections"] == 1
    assert other["failures"] == {"answer": 5, "connect": 3, "late": 2, "broken": 1}


def test_an_instance_without_requests_has_no_latency(shared: mmap) -> None:
    FakeProxy(shared).instance(0, {shared_memory.CREDITS: 4, shared_memory.LATENCY_US: 900})
    (one,) = status_view.instances(ENDPOINTS[:1], SlidingWindow(), read(shared, {A: 0}, SECOND))
    assert one["latency_ms"] is None and one["share"] == 0 and one["state"] == "up"


@pytest.mark.parametrize("shown", ["down", "drain"])
def test_what_the_controller_has_decided_comes_before_an_ejection(shared: mmap, shown: str) -> None:
    FakeProxy(shared).instance(0, {shared_memory.EJECTED_UNTIL: 9 * SECOND})
    (one,) = status_view.instances([endpoint(A, 0, shown)], SlidingWindow(), read(shared, {A: 0}, SECOND))
    assert one["state"] == shown


def test_the_history_for_the_page(shared: mmap) -> None:
    assert status_view.history(SlidingWindow()) == {
        name: [] for name in ("received", "sent", "limit", "requests", "p50", "p99", "refused")
    }
    shown = status_view.history(play(shared)[0])
    assert shown["received"][:3] == [0.32, 0.32, 0.32] and shown["limit"][0] == 10
    assert {len(column) for column in shown.values()} == {11}


# ---------------------------------------------------------------------- metrics


def metrics(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics(shared: mmap) -> None:
    recent, proxy = play(shared)
    proxy.instance(
        1,
        {shared_memory.OUTSTANDING: 2, shared_memory.EJECTED_UNTIL: 13 * SECOND, shared_memory.EJECTIONS: 1},
    )
    proxy.instance(0, {shared_memory.LATENCY_US: 2500, shared_memory.BROKEN: 4})
    for waited in (1000, 3000, 200_000_000_000):
        observe(proxy.cells, shared_memory.THROTTLE, waited)
    proxy.counters.flush()
    text = prometheus.exposition(FACTS, recent, read(shared, {A: 0, B: 1}, 11 * SECOND))
    found = {name: value for name, value in metrics(text).items() if name[0].startswith(PREFIX)}
    found = {(name[0].removeprefix(PREFIX), *name[1:]): value for name, value in found.items()}
    expected = {
        ("requests_total", "200"): 40, ("requests_total", "429"): 5,
        ("refused_total", "bandwidth"): 5, ("refused_total", "unauthorised"): 0,
        ("received_bytes_total",): 400_000, ("sent_bytes_total",): 100_000,
        ("bandwidth_limit_bits_per_second",): 10_000_000, ("bandwidth_debt_bits",): 8000,
        ("requests_inside",): 3, ("certificate_expires_timestamp_seconds",): 1800000000,
        ("throttle_seconds_count",): 3, ("throttle_seconds_sum",): 200_000.004,
        ("throttle_seconds_bucket", "0.001024"): 1, ("throttle_seconds_bucket", "+Inf"): 3,
        ("instance_state", B, "ejected"): 1, ("instance_state", B, "up"): 0, ("instance_state", A, "up"): 1,
        ("instance_outstanding", B): 2, ("instance_ejections_total", B): 1,
        ("instance_failures_total", A, "broken"): 4, ("instance_requests_total", A): 30,
        ("instance_latency_seconds", A): 0.0025, ("instance_workers", A): 2,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert 3 < found["bandwidth_utilisation_percent",] < 5
    assert len(found) == len(metrics(text))  # every name is ours


def test_metrics_of_an_empty_pool(shared: mmap) -> None:
    facts = status_view.StatusFacts("0.1", 0.0, 0, 0, 0.0, 0.0, [])
    found = metrics(prometheus.exposition(facts, SlidingWindow(), read(shared, {}, 0)))
    assert found["twofold_balance_bandwidth_utilisation_percent",] == 0
    assert ("twofold_balance_certificate_expires_timestamp_seconds",) not in found
