"""How long a process that keeps ending is left alone."""

from __future__ import annotations

import pytest

from twofold.process.backoff import Backoff


def test_the_first_failure_costs_nothing_and_each_further_one_the_factor_of_the_last() -> None:
    backoff = Backoff(first_s=0.2, most_s=10.0)
    delays = [backoff.delay_s(failures) for failures in range(10)]
    assert delays == pytest.approx([0, 0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert Backoff(first_s=1.0, most_s=100.0, factor=3.0).delay_s(4) == 9.0


def test_a_crash_loop_of_months_overflows_nothing() -> None:
    assert Backoff(first_s=0.2, most_s=10.0).delay_s(1_000_000) == 10.0
    assert Backoff(first_s=0.2, most_s=10.0, factor=1e4).delay_s(1_000_000) == 10.0
