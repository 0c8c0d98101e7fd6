"""Bandwidth from end to end in simulated time: the promises that a client could measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.loadbalancer.bandwidth_simulation import (
    MS,
    SECOND,
    Balancer,
    Elephant,
    Loop,
    PredictTraffic,
)
from twofold.loadbalancer.bandwidth.fair_queue import quantum
from twofold.loadbalancer.bandwidth.lease import LEASE_NS
from twofold.loadbalancer.bandwidth.token_bucket import depth

MBPS = 1_000_000


@contextmanager
def balancing(rate: int, proxies: int = 1, seed: int = 1, lateness: int = 2 * MS) -> Iterator[Balancer]:
    balancer = Balancer(Loop(seed, lateness), rate, proxies)
    try:
        yield balancer
    finally:
        balancer.close()


def elephants(balancer: Balancer, *places: int) -> list[Elephant]:
    flows = [Elephant(balancer, balancer.limiters[place]) for place in places]
    for flow in flows:
        balancer.loop.at(balancer.loop.dice.randrange(MS), flow.go)
    return flows


def predicts(
    balancer: Balancer, place: int, a_second: float, request: int = 800, answer: int = 400
) -> PredictTraffic:
    small = PredictTraffic(balancer, balancer.limiters[place], a_second, request, answer)
    balancer.loop.at(balancer.loop.dice.randrange(MS), small.go)
    return small


def shares(balancer: Balancer, flows: list[Elephant], seconds: int) -> list[int]:
    """Bytes that each flow was given, after a second to settle."""
    balancer.loop.run(balancer.loop.now + SECOND)
    before = [flow.sent for flow in flows]
    balancer.loop.run(balancer.loop.now + seconds * SECOND)
    return [flow.sent - sent for flow, sent in zip(flows, before, strict=True)]


def jain(values: list[int]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def excess(passed: list[tuple[int, int]], rate: int) -> float:
    """The most that any window of time was given above the rate, in bits."""
    total, lowest, worst = 0, float("inf"), 0.0
    for when, nbytes in passed:
        lowest = min(lowest, total - rate * when / SECOND)
        total += 8 * nbytes
        worst = max(worst, total - rate * when / SECOND - lowest)
    return worst


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def bins(balancer: Balancer, start: int, end: int, width: int = 100 * MS) -> list[int]:
    """Bits that passed in each `width` ns."""
    found = [0] * ((end - start) // width)
    for when, nbytes in balancer.passed:
        if start <= when < start + len(found) * width:
            found[(when - start) // width] += 8 * nbytes
    return found


# ---------------------------------------------------------------------- the rate


@pytest.mark.parametrize("proxies", [1, 3])
@pytest.mark.parametrize("mbps", [1, 10, 50, 100, 500, 1000])
def test_the_rate_is_exact_and_its_envelope_is_kept(mbps: int, proxies: int) -> None:
    rate, seconds = mbps * MBPS, 10 if mbps <= 10 else 3
    with balancing(rate, proxies) as balancer:
        elephants(balancer, *(n % proxies for n in range(6)))
        predicts(balancer, 0, 50)
        balancer.loop.run((seconds + 1) * SECOND)
        measured = 8 * balancer.bytes_between(SECOND, (seconds + 1) * SECOND) / seconds
        assert abs(measured - rate) <= 0.01 * rate
        assert excess(balancer.passed, rate) <= depth(rate) + 8 * quantum(rate)
        if mbps >= 10:
            expected = rate // 10
            found = bins(balancer, SECOND, seconds * SECOND)
            assert sum(0.9 * expected <= bits <= 1.1 * expected for bits in found) >= 0.95 * len(found)


def test_timers_that_are_late_lose_nothing() -> None:
    with balancing(10 * MBPS, lateness=30 * MS) as balancer:
        elephants(balancer, 0, 0)
        balancer.loop.run(11 * SECOND)
        assert abs(8 * balancer.bytes_between(SECOND, 11 * SECOND) / 10 - 10 * MBPS) <= 0.01 * 10 * MBPS


@pytest.mark.parametrize("proxies", [1, 2])
def test_a_new_rate_is_felt_within_50_ms_and_without_a_burst(proxies: int) -> None:
    with balancing(10 * MBPS, proxies) as balancer:
        elephants(balancer, *(n % proxies for n in range(8)))
        before = 10 * MBPS
        for now, rate in ((2 * SECOND, 50 * MBPS), (4 * SECOND, 5 * MBPS), (6 * SECOND, 10 * MBPS)):
            balancer.loop.run(now)
            balancer.bucket.set_rate(rate)
            balancer.loop.run(now + 2 * SECOND)
            after = 8 * balancer.bytes_between(now + 50 * MS, now + 550 * MS) * 2
            assert abs(after - rate) <= 0.1 * abs(rate - before)
            most = max(before, rate) // 10 + depth(max(before, rate))
            assert max(bins(balancer, now, now + SECOND)) <= most
            before = rate


def test_without_a_limit_nothing_waits_and_no_debt_remains() -> None:
    with balancing(10 * MBPS) as balancer:
        elephants(balancer, 0, 0, 0)
        balancer.loop.run(SECOND)
        balancer.bucket.set_rate(0)
        balancer.loop.run(SECOND + 200 * MS)
        assert 8 * balancer.bytes_between(SECOND, SECOND + 200 * MS) > 100 * MBPS
        assert not balancer.limiters[0].waiting
        balancer.bucket.set_rate(10 * MBPS)
        balancer.loop.run(3 * SECOND)
        again = 8 * balancer.bytes_between(2 * SECOND, 3 * SECOND)
        assert abs(again - 10 * MBPS) <= 0.02 * 10 * MBPS


# ---------------------------------------------------------------------- fairness


@pytest.mark.parametrize("flows", [2, 8, 64])
def test_equal_flows_are_served_alike(flows: int) -> None:
    with balancing(10 * MBPS) as balancer:
        sent = shares(balancer, elephants(balancer, *[0] * flows), 5)
        assert jain(sent) >= 0.99 and max(sent) <= 1.05 * min(sent)


@pytest.mark.parametrize("places", [(0, 1), (0,) * 7 + (1,), (0,) * 13 + (1, 2, 3)])
@pytest.mark.parametrize("mbps", [1, 10, 100])
def test_a_flow_fares_no_better_on_a_proxy_with_few(mbps: int, places: tuple[int, ...]) -> None:
    with balancing(mbps * MBPS, max(places) + 1) as balancer:
        sent = shares(balancer, elephants(balancer, *places), 5)
        assert jain(sent) >= 0.99
        assert sum(sent) * 8 >= 0.98 * 5 * mbps * MBPS


def test_a_proxy_with_small_pieces_starves_no_flow() -> None:
    with balancing(MBPS, 2) as balancer:
        large = elephants(balancer, 0, 0)
        small = elephants(balancer, 1, 1)
        for flow in small:
            flow.piece = 1000
        sent = shares(balancer, large + small, 5)
        assert max(sent) <= 1.5 * min(sent)


def test_the_turns_of_a_dead_proxy_are_taken_by_the_others() -> None:
    with balancing(10 * MBPS, 2) as balancer:
        elephants(balancer, 0, 0, 0)
        elephants(balancer, 1)
        balancer.loop.run(2 * SECOND)
        balancer.kill(1)
        balancer.loop.run(4 * SECOND)
        measured = 8 * balancer.bytes_between(2 * SECOND, 4 * SECOND)
        assert measured >= 2 * 10 * MBPS * 0.99 - 10 * MBPS * LEASE_NS // SECOND


@pytest.mark.parametrize("flows", [1, 8])
@pytest.mark.parametrize("mbps", [10, 100])
def test_small_predicts_do_not_wait_for_elephants(mbps: int, flows: int) -> None:
    rate = mbps * MBPS
    with balancing(rate) as balancer:
        elephants(balancer, *[0] * flows)
        small = predicts(balancer, 0, 20)
        balancer.loop.run(20 * SECOND)
        turn = 8 * quantum(rate) * SECOND // rate
        assert not small.refused and len(small.waits) > 300
        assert percentile(small.waits, 0.99) <= 2 * (flows + 1) * turn


def test_idle_neighbours_take_no_share() -> None:
    with balancing(10 * MBPS) as balancer:
        (busy,) = elephants(balancer, 0)
        for _ in range(200):
            predicts(balancer, 0, 0.05)
        (sent,) = shares(balancer, [busy], 5)
        assert 8 * sent >= 0.97 * 5 * 10 * MBPS


# ---------------------------------------------------------------------- more than there is room for


@pytest.mark.parametrize("proxies", [1, 2])
@pytest.mark.parametrize(("request_size", "answer"), [(800, 400), (200, 4000), (10_000, 1000)])
def test_twice_what_fits_is_refused_by_half_and_the_rest_is_in_time(
    request_size: int, answer: int, proxies: int
) -> None:
    rate = 10 * MBPS
    with balancing(rate, proxies) as balancer:
        offered = 2 * rate / 8 / (request_size + answer) / proxies
        small = [predicts(balancer, place, offered, request_size, answer) for place in range(proxies)]
        balancer.loop.run(8 * SECOND)
        waits = [wait for one in small for wait in one.waits]
        assert 8 * balancer.bytes_between(2 * SECOND, 8 * SECOND) / 6 >= 0.97 * rate
        assert percentile(waits, 0.99) <= 1.2 * SECOND
        refused = sum(one.refused for one in small)
        assert 0.4 <= refused / (len(waits) + refused) <= 0.6


def test_answers_of_many_pieces_are_counted_ahead() -> None:
    """Each shares with those that come later, so that some take twice the budget, but none takes more."""
    rate = 10 * MBPS
    with balancing(rate) as balancer:
        small = predicts(balancer, 0, 2 * rate / 8 / 11_000, 1000, 10_000)
        balancer.loop.run(10 * SECOND)
        assert 8 * balancer.bytes_between(2 * SECOND, 10 * SECOND) / 8 >= 0.97 * rate
        assert percentile(small.waits, 0.99) <= 2 * SECOND
