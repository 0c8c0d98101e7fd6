"""The token bucket: exact in the long run, bounded in the short one, and changed without a burst."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer.bandwidth.token_bucket import LEAST_DEPTH, MOST_DEPTH, NANO, TokenBucket, depth

SECOND = 1_000_000_000
RATES = st.sampled_from([1, 10, 50, 100, 500, 1000]).map(lambda mbps: mbps * 1_000_000)


@pytest.mark.parametrize(
    ("rate", "bits"),
    [(0, LEAST_DEPTH), (1_000_000, LEAST_DEPTH), (100_000_000, 5_000_000), (10**9, MOST_DEPTH)],
)
def test_the_depth_is_50_ms_of_the_rate_within_limits(rate: int, bits: int) -> None:
    assert depth(rate) == bits
    assert TokenBucket.full(rate, 7).take(7, 1 << 40) == bits


def test_a_refill_is_rate_times_time_up_to_the_depth() -> None:
    bucket = TokenBucket(8_000_000, 0, 0)
    bucket.refill(1000)
    assert bucket.level == 8_000_000 * 1000 and bucket.stamp_ns == 1000
    bucket.refill(10 * SECOND)
    assert bucket.level == depth(8_000_000) * NANO


def test_a_clock_that_runs_backwards_changes_nothing() -> None:
    bucket = TokenBucket(8_000_000, 5 * NANO, 1000)
    bucket.refill(500)
    assert (bucket.level, bucket.stamp_ns) == (5 * NANO, 1000)
    assert bucket.take(400, 3) == 3 and bucket.stamp_ns == 1000


def test_as_many_bits_are_granted_as_there_are() -> None:
    bucket = TokenBucket(1_000_000, 100 * NANO + 7, 0)
    assert bucket.take(0, 60) == 60
    assert bucket.take(0, 60) == 40
    assert bucket.take(0, 60) == 0 and bucket.level == 7, "a fraction of a bit stays"


def test_nothing_is_granted_before_a_debt_is_repaid() -> None:
    bucket = TokenBucket(1_000_000, 0, 0)
    bucket.give(-1000)
    assert bucket.debt(0) == 1000 and bucket.take(0, 1) == 0
    assert bucket.debt(500_000) == 500, "a bit in a microsecond"
    assert bucket.debt(1_000_000) == 0 and bucket.take(1_000_000, 1) == 0
    assert bucket.take(1_001_000, 5) == 1


def test_bits_that_are_given_back_do_not_exceed_the_depth() -> None:
    bucket = TokenBucket.full(1_000_000, 0)
    bucket.give(1000)
    assert bucket.level == depth(1_000_000) * NANO


def test_the_delay_is_the_time_after_which_the_bits_can_be_taken() -> None:
    bucket = TokenBucket(10_000_000, 0, 0)
    delay = bucket.delay_ns(0, 100_000)
    assert delay == 10_000_000
    assert bucket.take(delay - 1, 100_000) < 100_000
    bucket = TokenBucket(10_000_000, 0, 0)
    assert bucket.take(delay, 100_000) == 100_000


def test_more_than_the_depth_is_delayed_until_the_bucket_is_full() -> None:
    rate = 10_000_000
    full = depth(rate) * SECOND // rate
    assert TokenBucket(rate, 0, 0).delay_ns(0, 1 << 40) == full
    assert TokenBucket.full(rate, 0).delay_ns(0, 1 << 40) == 0


def test_without_a_rate_nothing_is_delayed() -> None:
    assert TokenBucket(0, 0, 0).delay_ns(0, 1000) == 0  # 0 is no limit


@settings(max_examples=100, deadline=None, derandomize=True)
@given(RATES, st.lists(st.integers(0, 200_000_000), min_size=1, max_size=60), st.integers(1, 1 << 22))
def test_no_window_of_time_grants_more_than_rate_and_depth(rate: int, steps: list[int], wanted: int) -> None:
    bucket, now = TokenBucket.full(rate, 0), 0
    given_at: list[tuple[int, int]] = []
    for step in steps:
        now += step
        given_at.append((now, bucket.take(now, wanted)))
        assert bucket.level <= depth(rate) * NANO
    for i, (begin, _) in enumerate(given_at):
        for j in range(i, len(given_at)):
            end = given_at[j][0]
            passed = sum(bits for _, bits in given_at[i : j + 1])
            assert passed <= depth(rate) + rate * (end - begin) / NANO + 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(RATES, st.integers(2_000_000, 30_000_000), st.integers(0, 1000))
def test_ten_seconds_of_use_are_exact(rate: int, most: int, seed: int) -> None:
    bucket, now, passed, dice = TokenBucket(rate, 0, 0), 0, 0, random.Random(seed)
    while now < 10 * SECOND:
        now += dice.randrange(1, most)
        passed += bucket.take(now, MOST_DEPTH * 2)
    if most * rate / NANO < depth(rate):  # looked at often enough never to be full
        assert abs(passed - rate * now / NANO) <= 1


@given(RATES, RATES, st.integers(0, 10 * SECOND))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_new_rate_makes_no_burst_and_forgives_no_debt(before: int, after: int, later: int) -> None:
    bucket = TokenBucket.full(before, 0)
    level = bucket.level
    bucket.set_rate(0, after)
    assert bucket.level == min(level, depth(after) * NANO)
    bucket.give(-100_000_000)
    debt = bucket.debt(0)
    bucket.set_rate(0, before)
    assert bucket.debt(0) == debt
    bucket.refill(later)
    assert bucket.debt(later) == max(0, -((-debt * NANO + before * later) // NANO))
