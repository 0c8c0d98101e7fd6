from __future__ import annotations

import random
from collections import deque

from twofold.loadbalancer.balancing.retry_budget import FLOOR, SLOT_NS, SLOTS, RetryBudget


def test_three_retries_are_granted_at_any_rate() -> None:
    budget = RetryBudget(0)
    budget.requests = 1
    assert [budget.take(0) for _ in range(5)] == [True, True, True, False, False]


def test_a_fifth_of_the_requests_may_be_retried() -> None:
    budget = RetryBudget(0)
    budget.requests = 1000
    assert sum(budget.take(5) for _ in range(1000)) == 200


def test_requests_outside_of_the_window_grant_no_retries() -> None:
    budget = RetryBudget(0)
    budget.requests = 1000
    assert sum(budget.take(9 * SLOT_NS) for _ in range(100)) == 100
    # The requests are ten seconds old now, the attempts one.
    assert not budget.take(10 * SLOT_NS)
    assert sum(budget.take(19 * SLOT_NS) for _ in range(100)) == FLOOR


def test_a_long_silence_empties_the_window() -> None:
    budget = RetryBudget(0)
    budget.requests = 1000
    budget.tick(3 * SLOT_NS)
    assert sum(budget.take(500 * SLOT_NS) for _ in range(100)) == FLOOR


def test_no_attempt_is_granted_above_a_fifth() -> None:
    """However requests and attempts arrive: counted here once more, from their own stamps."""
    draw = random.Random(7)
    budget = RetryBudget(0)
    requests: deque[int] = deque()
    retries: deque[int] = deque()
    now = granted = denied = 0
    for _ in range(20_000):
        now += int(draw.expovariate(1 / (SLOT_NS / draw.choice([5, 50, 500]))))
        for stamps in (requests, retries):
            while stamps and stamps[0] // SLOT_NS <= now // SLOT_NS - SLOTS:
                stamps.popleft()
        if draw.random() < 0.5:
            budget.tick(now)
            budget.requests += 1
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
            granted += 1
            assert len(retries) <= max(FLOOR, len(requests) * 0.2)
        else:
            denied += 1
            assert len(retries) + 1 > max(FLOOR, len(requests) * 0.2)
    assert granted > 500 and denied > 500
