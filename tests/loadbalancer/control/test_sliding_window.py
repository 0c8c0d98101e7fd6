"""Rates, percentiles and history from readings, at moments that the test makes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loadbalancer.controller_process import FakeProxy
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.control.sliding_window import (
    BRIEF,
    POINTS,
    Reading,
    SlidingWindow,
    percentile,
    read,
)
from twofold.telemetry import histograms

HALF = 500_000_000
MEGABYTE = 1_000_000


def reading(at: int, **counts: int) -> Reading:
    cells = [0] * shared_memory.CELLS
    for name, count in counts.items():
        cells[getattr(shared_memory, name)] = count
    return Reading(at, cells, {})


# ---------------------------------------------------------------------- percentiles


def test_an_empty_window_has_no_percentile() -> None:
    assert percentile([0] * histograms.BUCKETS, 0.99) is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_in_the_bucket_of_the_true_one(durations: list[int], share: float) -> None:
    counts = [0] * histograms.BUCKETS
    for each in durations:
        counts[each.bit_length()] += 1
    true = sorted(durations)[max(0, -(-len(durations) * share // 1).__int__() - 1)]
    found = percentile(counts, share)
    assert found is not None
    assert 2 ** (true.bit_length() - 1) * (true > 0) <= found <= 2 ** true.bit_length()


def test_percentiles_are_interpolated_within_a_bucket() -> None:
    dice, counts = random.Random(7), [0] * histograms.BUCKETS
    for _ in range(10_000):
        counts[dice.randrange(512, 1024).bit_length()] += 1
    assert percentile(counts, 0.5) == pytest.approx(768, rel=0.01)


# ---------------------------------------------------------------------- history


def test_rates_are_those_of_the_moment() -> None:
    recent = SlidingWindow()
    for step in range(9):
        recent.hear(reading(step * HALF, BYTES_IN=step * MEGABYTE, BYTES_OUT=step * MEGABYTE // 2), 0)
    assert recent.mbps() == pytest.approx((16, 8))
    for step in range(9, 9 + BRIEF):
        recent.hear(reading(step * HALF, BYTES_IN=8 * MEGABYTE, BYTES_OUT=4 * MEGABYTE), 0)
    assert recent.mbps() == (0, 0)
    assert recent.utilisation() == 0  # there is no limit


def test_bytes_that_are_counted_late_have_passed_before() -> None:
    """10 MB at 10 Mbps take 8 s, and are counted when the request ends."""
    recent = SlidingWindow()
    for step in range(21):
        recent.hear(reading(step * HALF, BYTES_IN=0), 10_000_000)
    recent.hear(reading(21 * HALF, BYTES_IN=10 * MEGABYTE), 10_000_000)
    used = [point.received for point in recent.points]
    assert max(used) == pytest.approx(10) and sum(used) * 0.5 == pytest.approx(80)
    assert used[-16:] == pytest.approx([10] * 16) and sum(used[:-16]) < 1e-9


def test_late_bytes_of_both_directions_are_spread() -> None:
    recent = SlidingWindow()
    for step in range(4):
        recent.hear(reading(step * HALF), 8_000_000)
    recent.hear(reading(4 * HALF, BYTES_IN=3 * MEGABYTE // 4, BYTES_OUT=MEGABYTE // 4), 8_000_000)
    assert [(point.received, point.sent) for point in list(recent.points)[-2:]] == [(6, 2), (6, 2)]
    assert recent.utilisation() == pytest.approx(0.5)


def test_counters_that_run_backwards_count_for_nothing() -> None:
    recent = SlidingWindow()
    for step, count in enumerate((5, 9, 2, 4)):
        recent.hear(reading(step * HALF, BYTES_IN=count * MEGABYTE, REFUSED_RATE=count), 0)
    assert [point.received for point in recent.points] == [64, 0, 32]
    assert [point.refused for point in recent.points] == [8, 0, 4]


def test_the_history_is_bounded_and_has_gaps() -> None:
    recent = SlidingWindow()
    for step in range(3 * POINTS):
        recent.hear(reading(step * HALF), 0)
    assert len(recent.points) == POINTS
    assert all(point.p50 is None and point.p99 is None for point in recent.points)


def test_percentiles_are_of_the_window() -> None:
    recent, shared = SlidingWindow(), shared_memory.attach(shared_memory.create())
    proxy = FakeProxy(shared)
    proxy.answer(1000, us=60_000_000)
    assert recent.percentiles(shared_memory.LATENCY) == (None, None)
    for step in range(30):
        recent.hear(read(shared, {}, step * HALF), 0)
        proxy.answer(100, us=1500)
    low, high = recent.percentiles(shared_memory.LATENCY)
    assert low is not None and high is not None and 1 < low < high < 2.05
    assert recent.points[-1].p50 == pytest.approx(low) and recent.points[-1].requests == 200


# ---------------------------------------------------------------------- readings


def test_all_proxies_are_added_up() -> None:
    shared = shared_memory.attach(shared_memory.create())
    one, other = FakeProxy(shared, 0), FakeProxy(shared, 31)
    one.answer(3)
    other.answer(4, status=503)
    one.instance(
        5,
        {
            shared_memory.OUTSTANDING: 1,
            shared_memory.CREDITS: 4,
            shared_memory.LATENCY_US: 100,
            shared_memory.EJECTED_UNTIL: 9,
        },
    )
    other.instance(
        5,
        {
            shared_memory.OUTSTANDING: 2,
            shared_memory.CREDITS: 4,
            shared_memory.LATENCY_US: 300,
            shared_memory.EJECTED_UNTIL: 7,
        },
    )
    found = read(shared, {"a": 5, "b": 6}, 1)
    assert (
        found.cells[shared_memory.STATUS_CELL[200]] == 3 and found.cells[shared_memory.STATUS_CELL[503]] == 4
    )
    sight = found.instances["a"]
    assert (
        sight.words[shared_memory.OUTSTANDING] == 3
        and sight.latency_us == 200
        and sight.ejected_until_ns == 9
    )
    assert not any(found.instances["b"].words)


def test_a_proxy_that_has_ended_does_not_count_for_latency() -> None:
    shared = shared_memory.attach(shared_memory.create())
    dead, alive = FakeProxy(shared, 0), FakeProxy(shared, 1)
    dead.instance(0, {shared_memory.CREDITS: 0, shared_memory.LATENCY_US: 90_000, shared_memory.REQUESTS: 5})
    alive.instance(0, {shared_memory.CREDITS: 4, shared_memory.LATENCY_US: 100, shared_memory.REQUESTS: 6})
    sight = read(shared, {"a": 0}, 1).instances["a"]
    assert sight.latency_us == 100 and sight.words[shared_memory.REQUESTS] == 11
