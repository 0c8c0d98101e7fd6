"""The bucket that several proxies share: one rate for all, whatever they do and whoever dies."""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import LEASE_NS, Lease, SharedBucket, http_bits, wire_bits
from twofold.loadbalancer.bandwidth.token_bucket import NANO, depth

SECOND = 1_000_000_000


@dataclass
class Clock:
    now: int = 1

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def shared() -> Iterator[tuple[int, mmap.mmap]]:
    fd = shared_memory.create()
    mapped = shared_memory.attach(fd)
    yield fd, mapped
    mapped.close()
    os.close(fd)


def test_wire_accounting_counts_segments() -> None:
    assert http_bits(1000) == 8000
    assert wire_bits(1448) == (1448 + 66) * 8 and wire_bits(1449) == (1449 + 2 * 66) * 8


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_several_proxies_share_one_rate(shared: tuple[int, mmap.mmap], workers: int) -> None:
    clock, dice, rate = Clock(), random.Random(7), 10_000_000
    bucket = SharedBucket(shared[1], shared[0], clock)
    bucket.set_rate(rate)
    meters = [Lease(bucket) for _ in range(workers)]
    passed = 0
    while clock.now < 5 * SECOND:
        clock.now += dice.randrange(200_000)
        size = dice.randrange(1, 6000)
        passed += 8 * size * dice.choice(meters).spend(size)
    expected = rate * clock.now / SECOND
    assert expected * 0.98 <= passed <= expected + depth(rate)


def test_a_killed_proxy_loses_one_lease_at_most(shared: tuple[int, mmap.mmap]) -> None:
    rate = 100_000_000
    bucket = SharedBucket(shared[1], shared[0])
    bucket.set_rate(rate)
    child = os.fork()
    if not child:
        meter = Lease(bucket)
        meter.spend(1)
        with bucket.open():  # dies with the lock in hand
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with bucket.open() as words:  # so it was freed
        lost = depth(rate) - words.level // NANO
    assert 8 <= lost <= rate * LEASE_NS // SECOND


STEPS = st.tuples(
    st.sampled_from(["spend", "spend", "spend", "settle", "save", "kill"]),
    st.integers(0, 3),  # which proxy
    st.integers(1, 16_000),  # bytes
    st.integers(0, 15_000_000),  # ns until then
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([1_000_000, 10_000_000, 100_000_000]), st.lists(STEPS, min_size=5, max_size=120))
def test_the_rate_is_kept_whatever_proxies_do_and_whichever_die(
    rate: int, steps: list[tuple[str, int, int, int]]
) -> None:
    fd = shared_memory.create()
    clock, mapped = Clock(), shared_memory.attach(fd)
    bucket = SharedBucket(mapped, fd, clock)
    bucket.set_rate(rate)
    meters = [Lease(bucket, number=number) for number in range(4)]
    passed: list[tuple[int, int]] = []
    for what, number, nbytes, pause in steps:
        clock.now += pause
        meter = meters[number]
        if what == "spend" and meter.spend(nbytes):
            passed.append((clock.now, 8 * nbytes))
        elif what in ("settle", "save"):
            meter.settle(*(0, 0) if what == "settle" else (1, nbytes))
        elif what == "kill":
            meter.share.close()
            meters[number] = Lease(bucket, number=number)
        with bucket.open() as words:
            assert words.level <= depth(rate) * NANO
    total, lowest = 0, 0.0
    for when, bits in passed:  # no window is given more than the rate, the bucket and what was leased
        lowest = min(lowest, total - rate * when / NANO)
        total += bits
        assert total - rate * when / NANO - lowest <= depth(rate) + 4 * max(rate * LEASE_NS // NANO, 128_000)
    for meter in meters:
        meter.share.close()
    mapped.close()
    os.close(fd)


def test_exchange_equals_opening_the_bucket(shared: tuple[int, mmap.mmap]) -> None:
    clock = Clock()
    bucket = SharedBucket(shared[1], shared[0], clock)
    bucket.set_rate(1_000_000)
    seen, taken = bucket.exchange(clock.now, -1000, 10**9)
    assert taken == depth(1_000_000) - 1000 and seen.level == 0
    with bucket.open() as again:
        assert (again.rate, again.level, again.stamp_ns) == (seen.rate, seen.level, seen.stamp_ns)


def test_an_unlimited_rate_is_felt_at_the_next_lease_and_costs_nothing(shared: tuple[int, mmap.mmap]) -> None:
    clock = Clock()
    bucket = SharedBucket(shared[1], shared[0], clock)
    bucket.set_rate(1_000_000)
    meter = Lease(bucket)
    while meter.spend(10_000):
        pass
    bucket.set_rate(0)
    assert meter.spend(10**9) and meter.delay_ns(10**9) == 0
    bucket.set_rate(1_000_000)
    meter.settle()
    assert meter.debt == 0


def test_the_delay_is_computed_without_a_visit_to_the_bucket(shared: tuple[int, mmap.mmap]) -> None:
    clock = Clock()
    bucket = SharedBucket(shared[1], shared[0], clock)
    bucket.set_rate(8_000_000)  # a byte in a microsecond
    meter = Lease(bucket)
    while meter.spend(1000):
        pass
    delay = meter.delay_ns(1000)
    assert 0 < delay <= 1_000_000
    clock.now += delay - 1000
    assert not meter.spend(1000)
    clock.now += 1001
    assert meter.delay_ns(1000) == 0 and meter.spend(1000)


def test_a_message_larger_than_the_bucket_passes_when_it_is_full(shared: tuple[int, mmap.mmap]) -> None:
    clock, rate = Clock(), 1_000_000
    bucket = SharedBucket(shared[1], shared[0], clock)
    bucket.set_rate(rate)
    meter, size = Lease(bucket), 1_000_000
    assert meter.spend(size)
    assert not meter.spend(1)
    assert meter.debt >= 8 * size - depth(rate) - 8
    clock.now += 8 * SECOND
    assert meter.spend(1)


def test_a_new_rate_reaches_every_proxy(shared: tuple[int, mmap.mmap]) -> None:
    bucket = SharedBucket(shared[1], shared[0])
    bucket.set_rate(1_000_000)
    meter = Lease(bucket)
    bucket.set_rate(2_000_000)
    meter.settle()
    assert meter.rate == bucket.rate == 2_000_000
