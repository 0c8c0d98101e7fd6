"""The arithmetic by which the benchmarks judge the load balancer: a wrong ruler would pass anything."""

from __future__ import annotations

import random

import pytest

from bench.balance import curves
from bench.balance.curves import SECOND, Sample
from bench.balance.traffic import Request, Work, central_queue, percentile, poisson

MS = SECOND // 1000


def steady(mbps: float, begin: int, end: int, every: int = MS) -> list[Sample]:
    return [(at, round(mbps * every / 8000)) for at in range(begin, end, every)]


def test_a_steady_flow_has_its_rate_in_every_bin() -> None:
    samples = steady(10, 0, SECOND)
    assert curves.rate(samples, 0, SECOND) == pytest.approx(10e6)
    coarse = curves.bins(samples, 0, SECOND, 100 * MS)
    assert coarse == [125_000] * 10
    assert curves.within(coarse, 125_000, 0.1) == 1
    assert curves.within([*coarse, 100_000], 125_000, 0.1) == pytest.approx(10 / 11)


def test_what_lies_outside_of_the_window_is_not_counted() -> None:
    samples = [(-1, 7), (0, 1), (99, 2), (100, 9)]
    assert curves.total(samples, 0, 100) == 3
    assert curves.bins(samples, 0, 100, 50) == [1, 2]


def test_excess_is_the_least_bucket_that_lets_the_samples_pass() -> None:
    assert curves.excess([], 8e6) == 0
    assert curves.excess([(0, 5000)], 8e6) == 5000
    # A burst after a silence is a burst: what was not used does not count.
    assert curves.excess([(0, 1000), (SECOND, 5000), (SECOND, 3000)], 8e6) == 8000
    assert curves.excess([(0, 1000), (MS, 1500)], 8e6) == pytest.approx(1500)


def test_excess_agrees_with_looking_at_every_pair() -> None:
    source, at = random.Random(5), 0
    samples: list[Sample] = []
    for _ in range(60):
        at += source.randrange(3 * MS)
        samples.append((at, source.randrange(1, 4000)))
    worst = max(
        sum(size for _, size in samples[i : j + 1]) - 1e6 * (samples[j][0] - samples[i][0]) / SECOND
        for i in range(len(samples))
        for j in range(i, len(samples))
    )
    assert curves.excess(samples, 8e6) == pytest.approx(worst)


@pytest.mark.parametrize(("before", "after"), [(10.0, 50.0), (50.0, 5.0)])
def test_a_step_is_settled_when_nine_tenths_of_it_are_done_and_stay(before: float, after: float) -> None:
    edit, late = SECOND, 40 * MS
    samples = steady(before, 0, edit + late) + steady(after, edit + late, 3 * SECOND)
    took = curves.settled(samples, edit, before * 1e6, after * 1e6, 50 * MS)
    assert 40 <= took <= 95
    assert curves.settled(steady(before, 0, 4 * SECOND), edit, before * 1e6, after * 1e6, 50 * MS) < 0


def test_jain_index() -> None:
    assert curves.jain([3, 3, 3]) == pytest.approx(1)
    assert curves.jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert curves.jain([0, 0]) == 0


def test_percentile() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1000), 0.99) == 990
    assert percentile([1], 0.99) == 1


def test_arrivals_have_their_rate_and_are_the_same_for_every_contender() -> None:
    work = Work(10_000)
    requests = poisson(1000, 20, work, seed=3)
    assert requests == poisson(1000, 20, work, seed=3)
    assert len(requests) == pytest.approx(20_000, rel=0.03)
    assert sum(one.work_us for one in requests) / len(requests) == pytest.approx(10_000, rel=0.03)


def test_bimodal_work_has_the_mean_that_it_names() -> None:
    work, source = Work(1000, "bimodal"), random.Random(1)
    drawn = [work.draw(source) for _ in range(50_000)]
    assert set(drawn) == {1000, 100_000}
    assert sum(drawn) / len(drawn) == pytest.approx(work.average_us, rel=0.03)


def test_a_central_queue_leaves_no_worker_idle_while_one_waits() -> None:
    requests = [Request(0, 100), Request(0, 10), Request(1, 10), Request(2, 10), Request(500, 7)]
    assert central_queue(requests, 2) == [100, 10, 19, 28, 7]
