"""Where durations are counted, one by one and many at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twofold.telemetry import histograms
from twofold.telemetry.histograms import observe, observe_all

START = 64
DURATIONS = st.lists(st.integers(0, 2**62 - 1))


def test_a_duration_is_below_the_power_of_two_of_its_bucket() -> None:
    cells = [0] * (START + histograms.SIZE)
    for spent_us in (0, 1, 2, 3, 4, 2**32 - 1):
        observe(cells, START, spent_us)
    counts = histograms.counts(cells, START)
    assert len(counts) == histograms.BUCKETS
    assert {bucket: count for bucket, count in enumerate(counts) if count} == {0: 1, 1: 1, 2: 2, 3: 1, 32: 1}
    assert cells[START + histograms.SUM] == 10 + 2**32 - 1 and not any(cells[:START])


@given(DURATIONS)
def test_many_at_once_are_counted_as_one_by_one(durations: list[int]) -> None:
    singly, together = ([0] * (START + histograms.SIZE) for _ in range(2))
    for spent_us in durations:
        observe(singly, START, spent_us)
    observe_all(together, START, durations)
    assert singly == together
