from __future__ import annotations

import itertools
from typing import Any

import pytest

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.balancing.instance import MAX_CREDITS, UNIT, Instance
from twofold.loadbalancer.balancing.outlier_detection import Failure
from twofold.loadbalancer.endpoint_record import EndpointRecord

MS = 1_000_000


def instance(workers: int = 4, **more: Any) -> Instance:
    return Instance(EndpointRecord("http://127.0.0.1:9001", 3, workers=workers, **more), 0)


def serve(one: Instance, requests: int, latency_us: int) -> None:
    one.requests += requests
    one.latency_sum_us += requests * latency_us


def test_credits_before_the_pace_is_known() -> None:
    one = instance(workers=4)
    one.grant(0, 1, 1.0)
    assert one.credits == 8 and one.limit == 8 * one.step


def test_credits_cover_the_workers_and_two_milliseconds() -> None:
    one = instance(workers=4)
    one.load = 4 * one.step
    one.requests = 4
    for tick in range(1, 200):
        serve(one, 40, 2000)
        one.measure(tick * 20 * MS, 0.0)
    assert one.rate == pytest.approx(2000, rel=0.01)
    one.grant(0, 1, 1.0)
    assert one.credits == 4 + 4
    one.way_ns = 5 * MS  # far away
    one.grant(0, 1, 1.0)
    assert one.credits == 4 + 14


def test_credits_below_a_request_in_two_milliseconds() -> None:
    one = instance(workers=4)
    one.rate = 400.0
    one.grant(0, 1, 1.0)
    assert (one.credits, one.limit, one.full) == (5, 4 * one.step, 5 * one.step)
    one.rate = 700.0
    one.grant(0, 1, 1.0)
    assert (one.credits, one.limit, one.full) == (6, 5 * one.step, 6 * one.step)
    one.grant(0, 2, 1.0)  # two proxies share them
    assert (one.credits, one.limit, one.full) == (3, 3 * one.step, 3 * one.step)
    one.allow(1)
    assert (one.credits, one.limit, one.full) == (1, one.step, one.step)


def test_pace_is_measured_only_while_every_worker_is_busy() -> None:
    one = instance(workers=4)
    one.load, one.requests = 3 * one.step, 3
    for tick in range(1, 50):
        serve(one, 5, 2000)
        one.measure(tick * 20 * MS, 0.0)
    assert one.rate == 0


def test_credits_are_bounded_fixed_and_shared() -> None:
    one = instance(workers=200)
    one.grant(0, 1, 1.0)
    assert one.credits == MAX_CREDITS
    one.grant(10, 1, 1.0)
    assert one.credits == 10
    one.grant(10, 4, 1.0)
    assert one.credits == 3
    unknown = instance(workers=0)
    unknown.grant(0, 1, 1.0)
    assert unknown.credits == MAX_CREDITS


def test_a_ramp_begins_with_one_credit() -> None:
    one = instance(workers=4)
    seen = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        one.grant(0, 1, part)
        seen.append(one.credits)
    assert seen == [1, 2, 4, 6, 8]


def test_a_change_of_workers_keeps_outstanding_requests() -> None:
    one = instance(workers=4)
    one.load = 3 * one.step
    for workers in (2, 7, 0, 1, 13, 256, 3):
        one.adopt(EndpointRecord(one.name, 3, workers=workers))
        assert one.outstanding == 3
        assert one.step == UNIT // max(1, workers)


def test_latency_of_the_first_requests_is_their_mean() -> None:
    one = instance()
    for tick, latency in enumerate([9000, 1000, 2000, 4000], start=1):
        serve(one, 1, latency)
        one.measure(tick * 20 * MS, 0.0)
    assert one.latency_us == 4000 and not one.known


def test_a_hot_instance_is_cleared_by_few_requests() -> None:
    one = instance()
    serve(one, 10, 50_000)
    one.measure(20 * MS, 0.0)
    one.hot = True
    for tick in range(2, 7):
        serve(one, 1, 1000)
        one.measure(tick * 20 * MS, 1000.0)
    assert one.latency_us < 2600


def test_a_latency_without_traffic_fades_into_the_typical() -> None:
    one = instance()
    serve(one, 100, 9000)
    for tick in range(1, 3001):  # a minute
        one.measure(tick * 20 * MS, 1000.0)
    assert one.latency_us == pytest.approx(1000, rel=0.05)


def test_failures_count_neither_as_served_nor_in_the_mean() -> None:
    one = instance()
    serve(one, 4, 1000)
    one.requests += 2
    one.load = 2 * one.step
    one.lose(700)
    one.lose(0)
    one.measure(20 * MS, 0.0)
    assert (one.newly, one.newly_sum_us, one.outstanding) == (4, 4000, 0)


def test_the_figures_in_shared_memory() -> None:
    shared = shared_memory.attach(shared_memory.create())
    one = instance()
    words = shared_memory.cell(shared, 2, one.cell)
    one.requests, one.load, one.latency_us, one.latency_sum_us = 9, 2 * one.step, 1234.9, 99_000
    one.failures = [0] * len(Failure)
    for amount, failure in zip(itertools.count(1), Failure, strict=False):
        one.failures[failure] = amount
    one.retries, one.credits = 6, 8
    one.outliers.eject(50, True)
    one.show(words)
    seen = shared_memory.cell(shared, 2, one.cell)
    assert seen[shared_memory.OUTSTANDING] == 2 and seen[shared_memory.REQUESTS] == 9
    assert seen[shared_memory.FIVEXX] == one.failures[Failure.ANSWER]
    assert seen[shared_memory.BROKEN] == one.failures[Failure.BROKEN]
    assert seen[shared_memory.TIMEOUTS] == one.failures[Failure.LATE]
    assert seen[shared_memory.CONNECT_ERRORS] == one.failures[Failure.CONNECT] + one.failures[Failure.REFUSED]
    assert seen[shared_memory.LATENCY_US] == 1234 and seen[shared_memory.LATENCY_SUM_US] == 99_000
    assert seen[shared_memory.EJECTED_UNTIL] == one.outliers.until_ns and seen[shared_memory.EJECTIONS] == 1
    assert seen[shared_memory.RETRIES] == 6 and seen[shared_memory.CREDITS] == 8
    one.outliers.acquit()
    one.show(words)
    assert seen[shared_memory.EJECTED_UNTIL] == 0
    assert list(shared_memory.cell(shared, 1, one.cell)) == [0] * shared_memory.CELL_WORDS  # nobody else's
