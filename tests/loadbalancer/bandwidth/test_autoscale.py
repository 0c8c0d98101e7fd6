"""Bandwidth that grows under load and shrinks without."""

from __future__ import annotations

from twofold.loadbalancer.bandwidth.autoscale import BUSY_NS, IDLE_NS, Autoscale

SECOND = 1_000_000_000


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
