"""What the pool does to whole streams of requests, in simulated time; every run is seeded."""

from __future__ import annotations

import pytest

from tests.support.loadbalancer.pool_simulation import (
    NS,
    Outcome,
    Request,
    Server,
    Simulation,
    bimodal,
    central_queue,
    exponential,
    percentile,
    poisson,
    round_robin,
)

pytestmark = pytest.mark.compiled  # the simulation drives InstancePool and WaitQueue

MS = 0.001
SEED = 1
# Four instances of so many workers, and how long a request takes them.
EQUAL = [(1, 10 * MS), (2, 1 * MS), (2, 10 * MS), (4, 1 * MS), (4, 100 * MS)]


def p99(latencies: list[float]) -> float:
    return percentile(latencies, 0.99)


def stream(load: float, workers: int, work: float, seconds: float) -> list[Request]:
    """Exponential work for `load` of the capacity of 4 instances."""
    rate = load * 4 * workers / work
    return poisson(rate, int(rate * seconds), exponential(work), SEED)


def run(servers: list[Server], requests: list[Request]) -> tuple[Simulation, Outcome]:
    simulation = Simulation(servers, SEED)
    outcome = simulation.run(requests)
    assert all(one.load == 0 for one in simulation.pool.instances.values()), "a count did not return to 0"
    assert len(simulation.waiting) == 0 and simulation.waiting.bytes == 0
    return simulation, outcome


def alike(number: int, workers: int) -> list[Server]:
    return [Server(workers) for _ in range(number)]


@pytest.mark.parametrize("load", [0.7, 0.9, 0.95])
@pytest.mark.parametrize(("workers", "work"), EQUAL)
def test_p99_is_that_of_a_central_queue(load: float, workers: int, work: float) -> None:
    requests = poisson(load * 4 * workers / work, 10_000, exponential(work), SEED)
    _, outcome = run(alike(4, workers), requests)
    assert p99(outcome.latencies) <= 1.15 * p99(central_queue(requests, 4 * workers))
    shares = [taken / len(requests) for taken in outcome.chosen.values()]
    assert all(abs(share - 0.25) < 0.02 for share in shares)


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_single_workers_need_a_request_in_reserve(load: float) -> None:
    """While the way takes a fifth of the work, binding one early costs less than an idle worker."""
    requests = poisson(load * 4 / MS, 10_000, exponential(MS), SEED)
    _, outcome = run(alike(4, 1), requests)
    assert p99(outcome.latencies) <= 1.3 * p99(central_queue(requests, 4))
    assert p99(outcome.latencies) < 0.8 * p99(round_robin(requests, 4, 1))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_short_and_long_requests_beat_round_robin(workers: int) -> None:
    requests = poisson(0.9 * 4 * workers / 0.0109, 10_000, bimodal(1 * MS, 100 * MS, 0.1), SEED)
    _, outcome = run(alike(4, workers), requests)
    assert 2 * p99(outcome.latencies) <= p99(round_robin(requests, 4, workers))


@pytest.mark.parametrize(("workers", "work"), [(1, 10 * MS), (2, 1 * MS), (4, 10 * MS)])
def test_a_slow_instance_does_not_raise_the_p99(workers: int, work: float) -> None:
    requests = stream(0.5, workers, work, min(30.0, 6 * work / MS))
    _, healthy = run(alike(4, workers), requests)
    _, outcome = run([*alike(3, workers), Server(workers, slow=lambda now: 10.0)], requests)
    later = [late for late, at in zip(outcome.latencies, outcome.arrivals, strict=True) if at > 1]
    assert p99(later) <= 1.5 * p99(healthy.latencies)
    assert outcome.chosen["3"] / len(requests) <= 0.1 / 3.1  # its part of what they can do together


def test_a_slow_instance_helps_when_the_others_cannot_cope() -> None:
    """Three are worth 1200 requests per second, the slow one 40 more: it must not idle at 1300."""
    requests = poisson(1300, 10_000, exponential(10 * MS), SEED)
    _, outcome = run([*alike(3, 4), Server(4, slow=lambda now: 10.0)], requests)
    assert 0.02 < outcome.chosen["3"] / len(requests) < 0.05
    assert p99(outcome.latencies) < p99(central_queue(requests, 12))


def test_an_instance_that_was_slow_for_a_while_returns() -> None:
    requests = stream(0.5, 2, 10 * MS, 25)
    servers = [*alike(3, 2), Server(2, slow=lambda now: 10.0 if 3 < now < 8 else 1.0)]
    simulation, _ = run(servers, [one for one in requests if one.at < 15])
    assert not simulation.pool.instances["3"].hot
    before = simulation.outcome.chosen["3"]
    total = sum(simulation.outcome.chosen.values())
    rest = [one for one in requests if one.at >= 15]
    simulation.run_on(rest)
    assert (simulation.outcome.chosen["3"] - before) / (sum(simulation.outcome.chosen.values()) - total) > 0.2


def test_a_sinkhole_costs_ten_requests_at_most() -> None:
    requests = stream(0.5, 2, 10 * MS, 40)
    simulation, outcome = run([*alike(3, 2), Server(2, fails=lambda now: now < 30)], requests)
    assert 5 <= len(outcome.errors) <= 10
    assert outcome.refused == 0
    assert outcome.errors[4] < 0.5  # ejected by then
    assert simulation.pool.instances["3"].requests > 200  # back again, once it answers well


def test_an_instance_that_never_answers_is_ejected() -> None:
    requests = stream(0.5, 2, 10 * MS, 20)
    _, healthy = run(alike(4, 2), requests)
    _, outcome = run([*alike(3, 2), Server(2, hangs=lambda now: now > 2)], requests)
    # What it had been given before anybody could know, and one request for each trial.
    assert len(outcome.errors) <= 4 + 3
    assert p99(outcome.latencies) <= 1.5 * p99(healthy.latencies)


def test_a_restarted_instance_loses_nothing_that_was_not_sent() -> None:
    requests = stream(0.5, 2, 10 * MS, 12)
    servers = [*alike(3, 2), Server(2, refuses=lambda now: 3 < now < 5)]
    simulation, outcome = run(servers, requests)
    assert outcome.errors == [] and outcome.refused == 0
    assert outcome.attempts == len(requests) + 1  # one refusal was enough
    assert simulation.pool.instances["3"].credits > 1


def test_all_down_and_back() -> None:
    """At once 503 while nobody is there; the first instance that is back answers within a tick."""
    requests = stream(0.3, 2, 10 * MS, 8)
    servers = [Server(2, refuses=lambda now, back=4 + n: 2 < now < back) for n in range(4)]  # type: ignore[misc]
    _, outcome = run(servers, requests)
    answered = sorted(outcome.arrivals)
    lost = [at for at in (one.at for one in requests) if 2 < at < 4]
    assert outcome.errors == [] and 0.9 * len(lost) <= outcome.refused <= 1.1 * len(lost)
    first = next(at for at in answered if at > 3)
    assert first < 4.1


def test_a_drained_instance_fails_no_request() -> None:
    requests = stream(0.5, 2, 10 * MS, 6)
    simulation = Simulation(alike(4, 2), SEED)

    def drain() -> None:
        entries = [simulation.entry(number, "drain" if number == 2 else "up") for number in range(4)]
        simulation.pool.apply(entries, simulation.clock)
        drained.append(simulation.outcome.chosen["2"])

    drained: list[int] = []
    simulation.after(3.0, drain)
    outcome = simulation.run(requests)
    assert len(outcome.latencies) == len(requests)
    assert outcome.chosen["2"] == drained[0] > 100


def test_far_away_instances_are_kept_busy() -> None:
    """10 ms there and back, for 1 ms of work: credits must cover the way once the proxy has told it."""
    requests = poisson(0.8 * 8 / MS, 24_000, exponential(MS), SEED)
    simulation = Simulation(alike(4, 2), SEED)
    simulation.way = 5 * MS
    for one in simulation.pool.instances.values():
        one.way_ns = NS // 100
    outcome = simulation.run(requests)
    late = [late for late, at in zip(outcome.latencies, outcome.arrivals, strict=True) if at > 3]
    assert percentile(late, 0.5) < 13 * MS and p99(late) < 25 * MS


def test_the_same_seed_is_the_same_run() -> None:
    requests = stream(0.9, 2, 10 * MS, 3)
    assert run(alike(4, 2), requests)[1].latencies == run(alike(4, 2), requests)[1].latencies
