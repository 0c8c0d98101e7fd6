"""Requests per second, by the generic cell rate algorithm, and the accounts of many callers."""

from __future__ import annotations

from twofold.loadbalancer.bandwidth.request_rate import MAX_CALLERS, CallerRates, Gcra

SECOND = 1_000_000_000


def test_a_rate_of_requests_is_kept_after_its_burst() -> None:
    account, now, taken = Gcra(100), 1, 0
    while now < 10 * SECOND:
        wait = account.take(now)
        if wait:
            now += wait
        else:
            taken += 1
    assert 1000 <= taken <= 1102


def test_an_account_may_take_any_amount_once() -> None:
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
