"""How much may pass: what is set, what is inherited, and what is raised under load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.lease import SharedBucket
from twofold.loadbalancer.bandwidth.policy import BandwidthPolicy
from twofold.loadbalancer.config import BandwidthSettings

SECOND = 1_000_000_000


@pytest.fixture
def bucket() -> SharedBucket:
    fd = shared_memory.create()
    return SharedBucket(shared_memory.attach(fd), fd)


def limits(
    bucket: SharedBucket, mbps: float, maximum: float = 0, before: Mapping[str, Any] | None = None
) -> BandwidthPolicy:
    settings = BandwidthSettings(bandwidth_mbps=float(mbps), maximum_bandwidth_mbps=float(maximum))
    return BandwidthPolicy(bucket, settings, before or {})


def test_settings_hold_at_first(bucket: SharedBucket) -> None:
    assert limits(bucket, 10).rate == bucket.rate == 10_000_000
    assert limits(bucket, 0).rate == 0
    assert limits(bucket, 0.5).rate == 500_000


def test_what_the_admin_sets_outlives_the_controller_but_not_a_change_of_settings(
    bucket: SharedBucket,
) -> None:
    first = limits(bucket, 10)
    first.set(25)
    heir = limits(bucket, 10, before=first.published())
    assert (heir.mbps, heir.rate) == (25, 25_000_000)
    assert limits(bucket, 12, before=heir.published()).rate == 12_000_000


@pytest.mark.parametrize(
    ("mbps", "maximum"),
    [
        (-1, 0),
        (math.nan, 0),
        (math.inf, 0),
        (1e-7, 0),  # would be 0 bit/s, which is no limit at all
        (1e6 + 1, 0),
        (10, 10),
        (10, 20.1),
        (10, 5),
        (0, 5),
        (10, math.nan),
    ],
)
def test_invalid_bandwidths_change_nothing(bucket: SharedBucket, mbps: float, maximum: float) -> None:
    made = limits(bucket, 10)
    with pytest.raises(ValueError, match="mbps must be"):
        made.set(mbps, maximum)
    assert (made.mbps, made.maximum, made.rate) == (10, 0, 10_000_000)


def load(made: BandwidthPolicy, seconds: range, utilisation: float) -> None:
    for second in seconds:
        made.hear(second * SECOND, utilisation)


def test_the_bandwidth_is_raised_under_load_and_lowered_without(bucket: SharedBucket) -> None:
    made = limits(bucket, 10, 20)
    assert made.rate == 10_000_000
    load(made, range(1, 61), 1.0)
    assert made.rate == 10_000_000
    load(made, range(61, 400), 1.0)
    assert made.rate == 20_000_000
    load(made, range(400, 4000), 0.1)
    assert made.rate == 10_000_000


def test_a_raised_bandwidth_stays_raised_with_the_next_controller(bucket: SharedBucket) -> None:
    made = limits(bucket, 10, 20)
    load(made, range(1, 70), 1.0)
    raised = made.rate
    assert raised > 10_000_000
    heir = limits(bucket, 10, 20, before=made.published())
    assert heir.rate == raised
    load(heir, range(1, 400), 1.0)
    assert heir.rate == 20_000_000
    assert limits(bucket, 10, 0, before=heir.published()).rate == 10_000_000


def test_without_a_maximum_nothing_is_raised(bucket: SharedBucket) -> None:
    made = limits(bucket, 10)
    load(made, range(1, 1000), 1.0)
    assert made.rate == 10_000_000
