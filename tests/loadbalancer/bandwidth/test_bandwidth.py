"""Bandwidth: exact in the long run, bounded in the short one, fair, and changed without a burst."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.autoscale import BUSY_NS, IDLE_NS, Autoscale
from twofold.loadbalancer.bandwidth.fair_queue import FairQueue, Ticket, quantum
from twofold.loadbalancer.bandwidth.lease import Lease, SharedBucket, http_bits, wire_bits
from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter
from twofold.loadbalancer.bandwidth.request_rate import MAX_CALLERS, CallerRates, Gcra
from twofold.loadbalancer.bandwidth.token_bucket import MOST_DEPTH, NANO, TokenBucket, depth

SECOND = 1_000_000_000
RATES = st.sampled_from([1, 10, 50, 100, 500, 1000]).map(lambda mbps: mbps * 1_000_000)


# ---------------------------------------------------------------------- the bucket


@settings(max_examples=100, deadline=None, derandomize=True)
@given(RATES, st.lists(st.integers(0, 200_000_000), min_size=1, max_size=60), st.integers(1, 1 << 22))
def test_no_pattern_of_looks_at_the_clock_gains_or_loses(rate: int, steps: list[int], wanted: int) -> None:
    bucket, now, start = TokenBucket.full(rate, 0), 0, 0
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
    assert start == 0


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
def test_a_live_edit_makes_no_burst_and_forgives_no_debt(before: int, after: int, later: int) -> None:
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


def test_the_delay_is_the_time_after_which_it_can_be_taken() -> None:
    bucket = TokenBucket(10_000_000, 0, 0)
    delay = bucket.delay_ns(0, 100_000)
    assert delay == 10_000_000
    assert bucket.take(delay - 1, 100_000) < 100_000
    bucket = TokenBucket(10_000_000, 0, 0)
    assert bucket.take(delay, 100_000) == 100_000


def test_wire_accounting_counts_segments() -> None:
    assert http_bits(1000) == 8000
    assert wire_bits(1448) == (1448 + 66) * 8 and wire_bits(1449) == (1449 + 2 * 66) * 8


@pytest.fixture
def shared() -> Iterator[tuple[int, mmap.mmap]]:
    fd = shared_memory.create()
    mapped = shared_memory.attach(fd)
    yield fd, mapped
    mapped.close()
    os.close(fd)


# ---------------------------------------------------------------------- fairness


def serve_for(fair_queue: FairQueue, bucket: TokenBucket, now: int) -> list[Ticket]:
    def spend(nbytes: int) -> bool:
        if bucket.delay_ns(now, 8 * nbytes):
            return False
        bucket.take(now, 8 * nbytes)
        return True

    return fair_queue.serve(spend)


@pytest.mark.parametrize("flows", [2, 8, 64])
@pytest.mark.parametrize("rate", [10_000_000, 1_000_000_000])
def test_equal_flows_get_equal_shares(flows: int, rate: int) -> None:
    fair_queue, bucket, dice = FairQueue(), TokenBucket(rate, 0, 0), random.Random(3)
    fair_queue.quantum = quantum(rate)
    sent = [0] * flows
    owner: dict[int, int] = {}

    def join(flow: int) -> None:
        ticket = Ticket(fair_queue.quantum, lambda: None, 0)
        owner[id(ticket)] = flow
        tickets.append(ticket)
        fair_queue.add(ticket)

    tickets: list[Ticket] = []
    for flow in range(flows):
        join(flow)
    now = 0
    while now < 5 * SECOND:
        now += dice.randrange(1, 3_000_000)
        for ticket in serve_for(fair_queue, bucket, now):
            sent[owner[id(ticket)]] += ticket.size
            join(owner[id(ticket)])
    jain = sum(sent) ** 2 / (flows * sum(one * one for one in sent))
    assert jain >= 0.99 and max(sent) <= 1.05 * min(sent)


def test_a_small_message_passes_an_elephant() -> None:
    rate = 10_000_000
    fair_queue, bucket = FairQueue(), TokenBucket(rate, 0, 0)
    fair_queue.quantum = quantum(rate)
    elephant = Ticket(10 * fair_queue.quantum, lambda: None, 0)
    fair_queue.add(elephant)
    small = Ticket(1000, lambda: None, 0)
    fair_queue.add(small)
    served: list[Ticket] = []
    now = 0
    while not served:
        now += 1_000_000
        served = serve_for(fair_queue, bucket, now)
    assert served[0] is small and now <= 2 * fair_queue.quantum * 8 * SECOND // rate


def test_whoever_leaves_costs_nothing() -> None:
    fair_queue = FairQueue()
    gone, there = Ticket(10**9, lambda: None, 0), Ticket(10, lambda: None, 0)
    fair_queue.add(gone)
    fair_queue.add(there)
    fair_queue.cancel(gone)
    assert fair_queue.queued == 10 and fair_queue.next_size == 10
    assert fair_queue.serve(lambda nbytes: nbytes == 10) == [there] and fair_queue.queued == 0


# ---------------------------------------------------------------------- the limiter, on a real loop


def test_what_waits_goes_on_in_time_and_after_a_raise(shared: tuple[int, mmap.mmap]) -> None:
    bucket = SharedBucket(shared[1], shared[0])
    bucket.set_rate(8_000_000)  # a byte in a microsecond

    async def scenario() -> tuple[float, float, list[int]]:
        loop = asyncio.get_running_loop()
        limiter = BandwidthLimiter(Lease(bucket), 1.0)
        limiter.start(loop)
        while limiter.pay(1000):
            pass
        order: list[int] = []
        started = loop.time()
        done = asyncio.Event()

        def go(number: int) -> None:
            order.append(number)
            if number == 99:
                done.set()

        for number in range(100):
            limiter.wait(4000, partial(go, number))
        assert limiter.waiting == 100 and not limiter.pay(1)
        await done.wait()
        shaped = loop.time() - started
        bucket.set_rate(0)
        limiter.wait(10**9, done.clear)
        limiter.tick()
        return shaped, loop.time() - started - shaped, order

    shaped, freed, order = asyncio.run(scenario())
    assert 0.36 <= shaped <= 0.8 and freed < 0.1 and order == list(range(100))


def test_admission_predicts_the_delay(shared: tuple[int, mmap.mmap]) -> None:
    bucket = SharedBucket(shared[1], shared[0])
    bucket.set_rate(1_000_000)

    async def scenario() -> None:
        limiter = BandwidthLimiter(Lease(bucket), 1.0)
        limiter.start(asyncio.get_running_loop())
        assert limiter.refusal_delay(10_000_000) == 0  # nothing is ahead of it
        tickets = [limiter.wait(4000, lambda: None) for _ in range(250)]
        assert limiter.refusal_delay(1000) == 9  # 8 s ahead, and its own
        for ticket in tickets:
            limiter.cancel(ticket)
        assert limiter.refusal_delay(1000) == 0
        for _ in range(500):
            limiter.wait(100, lambda: None)
        limiter.echo = 3.0
        assert limiter.refusal_delay(1000) == 2  # 50 KB and their answers, then its own 4
        limiter.echo = 4.0
        assert limiter.refusal_delay(1000) == 5  # its answer takes turns: 250 KB once more

    asyncio.run(scenario())


def test_a_small_request_is_not_refused_because_of_a_few_large_ones(shared: tuple[int, mmap.mmap]) -> None:
    bucket = SharedBucket(shared[1], shared[0])
    bucket.set_rate(1_000_000)

    async def scenario() -> None:
        limiter = BandwidthLimiter(Lease(bucket), 1.0)
        limiter.start(asyncio.get_running_loop())
        limiter.pay(65536)
        for _ in range(3):
            limiter.wait(limiter.quantum, lambda: None)
            limiter.held += 1_000_000
        limiter.announced = 10_000_000
        assert limiter.refusal_delay(1000) == 0
        assert limiter.refusal_delay(10_000) == 0
        assert limiter.refusal_delay(1_000_000) == 32  # three that want as much, and its own

    asyncio.run(scenario())


# ---------------------------------------------------------------------- requests, callers, autoscale


def test_a_rate_of_requests_is_kept_after_its_burst() -> None:
    account, now, taken = Gcra(100), 1, 0
    while now < 10 * SECOND:
        wait = account.take(now)
        if wait:
            now += wait
        else:
            taken += 1
    assert 1000 <= taken <= 1102


def test_an_account_may_take_anything_once() -> None:
    account = Gcra(1000)
    assert account.take(1, 10_000_000) == 0 and account.take(2, 1) > 0


def test_callers_are_bounded_and_the_last_seen_stay() -> None:
    callers = CallerRates(1)
    first = callers.of("first")
    for number in range(MAX_CALLERS - 1):
        callers.of(str(number))
    assert callers.of("first") is first
    callers.of("one more")
    assert len(callers) == MAX_CALLERS and callers.of("first") is first


def test_bandwidth_grows_while_used_up_and_shrinks_when_idle() -> None:
    scale, now = Autoscale(10, 20), 1
    rates = [scale.hear(now := now + SECOND, 0.9) for _ in range(6 * BUSY_NS // SECOND)]
    assert rates[0] == 10 and max(rates) == 20 and sorted(rates) == rates
    now += SECOND
    assert scale.hear(now, 0.5) == 20
    rates = [scale.hear(now := now + SECOND, 0.1) for _ in range(6 * IDLE_NS // SECOND)]
    assert rates[0] == 20 and min(rates) == 10


def test_a_short_peak_raises_nothing() -> None:
    scale = Autoscale(10, 20)
    for second in range(200):
        assert scale.hear(1 + second * SECOND, 0.9 if second % 30 else 0.5) == 10
