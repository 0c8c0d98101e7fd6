from __future__ import annotations

import timeit
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer.balancing.candidates import SelectionSettings
from twofold.loadbalancer.balancing.instance import Instance
from twofold.loadbalancer.balancing.instance_pool import InstancePool
from twofold.loadbalancer.endpoint_record import EndpointRecord

SECOND = 1_000_000_000
TICK = SECOND // 50
START = SECOND


def entry(name: str, state: str = "up", workers: int = 2, since: int = 0) -> EndpointRecord:
    return EndpointRecord(name, 0, state, workers, since)


def pool(*names: str, seed: int = 1, **fixed: Any) -> InstancePool:
    made = InstancePool(SelectionSettings(**fixed), Random(seed), START)
    made.apply([entry(name) for name in names], START)
    return made


def take(made: InstancePool, waiting: int = 0) -> Instance:
    chosen = made.candidates.choose(waiting)
    assert chosen is not None
    made.started(chosen)
    return chosen


def ticks(made: InstancePool, now: int, seconds: float) -> int:
    for _ in range(round(seconds * 50)):
        now += TICK
        made.tick(now)
    return now


def serve(made: InstancePool, one: Instance, latency_us: int, number: int, now: int) -> None:
    for _ in range(number):
        made.started(one)
        made.finished(one, now, latency_us, 200)


def test_the_least_busy_instance_is_chosen() -> None:
    made = pool("a", "b", "c", "d")
    first = [take(made).name for _ in range(4)]
    assert sorted(first) == ["a", "b", "c", "d"]
    made.finished(made.instances["c"], START, 900, 200)
    assert take(made).name == "c"


def test_busyness_is_relative_to_workers() -> None:
    made = InstancePool(SelectionSettings(), Random(1), START)
    made.apply([entry("small", workers=2), entry("large", workers=6)], START)
    for _ in range(16):
        take(made)
    assert [made.instances[name].outstanding for name in ("small", "large")] == [4, 12]
    assert made.candidates.choose() is None and made.candidates.choose(1000) is None


def test_equally_busy_ones_are_chosen_by_latency_and_then_at_random() -> None:
    made, now = pool("a", "b", "c"), START
    for name, latency in (("a", 1000), ("b", 1600), ("c", 1000)):
        serve(made, made.instances[name], latency, 200, now)
    chosen = []
    for _ in range(40):
        now = ticks(made, now, 0.02)
        first, second = take(made), take(made)
        chosen.append(first.name + second.name)
        for one in (first, second):
            made.cancelled(one, now, late=False)
    assert set(chosen) == {"ac", "ca"}


def test_no_instance_is_chosen_beyond_its_credits() -> None:
    made = pool("a", "b", credits=3)
    for _ in range(6):
        take(made)
    assert made.candidates.choose() is None and made.candidates.choose(10_000) is None
    assert made.candidates.usable
    made.cancelled(made.instances["a"], START, late=False)
    assert take(made).name == "a"


def test_the_last_credit_waits_for_a_queue_as_long_as_the_pool() -> None:
    made = pool("a", "b")
    for one in made.instances.values():
        one.rate = 200.0  # less than one request in 2 ms
    made.tick(START + TICK)
    for _ in range(4):  # two workers each
        take(made)
    assert made.candidates.choose() is None and made.candidates.choose(1) is None
    assert {take(made, 2).name, take(made, 2).name} == {"a", "b"}
    assert made.candidates.choose(2) is None


def test_a_drained_or_removed_instance_gets_nothing_and_finishes_what_it_has() -> None:
    made = pool("a", "b")
    a = made.instances["a"]
    made.started(a)
    assert made.apply([entry("a", "drain"), entry("b")], START) == ([], [])
    assert {take(made).name for _ in range(4)} == {"b"}
    assert made.candidates.choose() is None
    added, removed = made.apply([entry("b"), entry("c", since=START)], START)
    assert [one.name for one in added] == ["c"] and removed == [a]
    made.finished(a, START, 900, 200)
    assert a.outstanding == 0
    made.started(a)
    for _ in range(9):  # even failing it may disturb nobody
        made.failed(a, START)
        made.started(a)
    assert take(made).name == "c"


def test_an_empty_pool_is_not_usable() -> None:
    made = pool()
    assert not made.candidates.usable and made.candidates.choose() is None
    made.tick(START + TICK)
    assert not made.candidates.usable


def test_a_returned_instance_starts_slowly_and_those_of_the_start_do_not() -> None:
    made = InstancePool(SelectionSettings(), Random(1), START)
    made.apply([entry("a", workers=4), entry("new", workers=4, since=START)], START)
    assert made.instances["a"].credits == 8
    seen, now = [made.instances["new"].credits], START
    for _ in range(5):
        now = ticks(made, now, 1.0)
        seen.append(made.instances["new"].credits)
    assert seen == [1, 2, 3, 5, 6, 8]


def test_when_all_are_new_their_workers_are_kept_busy() -> None:
    made = InstancePool(SelectionSettings(), Random(1), START)
    made.apply([entry("a", workers=4, since=START), entry("b", workers=4, since=START)], START)
    assert [one.credits for one in made.instances.values()] == [4, 4]


def test_five_5xx_in_a_row_eject_for_five_seconds_then_one_request_tries() -> None:
    made, now = pool("a", "b", "c", "d"), START
    bad = made.instances["a"]
    for _ in range(5):
        made.started(bad)
        made.finished(bad, now, 400, 500)
    assert bad.outliers.out and bad.outliers.ejections == 1
    assert {take(made).name for _ in range(12)} == {"b", "c", "d"}
    now = ticks(made, now, 4.9)
    assert bad.outliers.out
    now = ticks(made, now, 0.2)
    assert take(made) is bad and made.candidates.choose() is None  # one at a time
    made.finished(bad, now, 400, 500)
    assert bad.outliers.until_ns == now + 10 * SECOND
    now = ticks(made, now, 10.1)
    assert take(made) is bad
    made.finished(bad, now, 400, 200)
    now = ticks(made, now, 0.02)
    assert bad.serving and bad.credits == 1
    ticks(made, now, 5.0)
    assert bad.credits == 4


def test_answers_outstanding_at_its_ejection_do_not_bring_an_instance_back() -> None:
    made = pool("a", "b", "c")
    bad = made.instances["a"]
    for _ in range(4):
        made.started(bad)
    for _ in range(3):
        made.cancelled(bad, START, late=True)
    assert bad.outliers.out
    made.finished(bad, START, 60_000_000, 200)
    assert bad.outliers.out and bad.outstanding == 0


@pytest.mark.parametrize("at_once", [1, 3, 8])
@pytest.mark.parametrize("per_tick", [1, 10, 100])
def test_a_payload_that_fails_everywhere_ejects_no_instance(at_once: int, per_tick: int) -> None:
    """A caller that sends nothing else, alone on the pool."""
    made, now = pool("a", "b", "c", "d"), START
    for _ in range(50):
        now = ticks(made, now, 0.02)
        for _ in range(per_tick):
            for one in [take(made) for _ in range(at_once)]:
                made.finished(one, now, 400, 500)
        assert not any(one.outliers.out for one in made.instances.values())


def test_a_refused_connection_ejects_at_once_and_a_connect_brings_back() -> None:
    made = pool("a", "b")
    for name in "ab":
        one = made.instances[name]
        made.started(one)
        made.connect_failed(one, START, refused=True)
    assert not made.candidates.usable and made.candidates.choose(5) is None and made.candidates.panic
    assert [one.name for one in made.unreachable()] == ["a", "b"]
    made.reachable(made.instances["b"], START + SECOND)
    assert [one.name for one in made.unreachable()] == ["a"]
    assert take(made).name == "b"


def test_three_connects_without_an_answer_eject() -> None:
    made = pool("a", "b", "c")
    for number in range(3):
        assert not made.instances["a"].outliers.out, number
        made.started(made.instances["a"])
        made.connect_failed(made.instances["a"], START, refused=False)
    assert made.instances["a"].outliers.out


def test_panic_uses_the_unhealthy_but_for_those_that_refuse() -> None:
    made = pool("a", "b", "c", "d", "e")
    made.apply([entry(name, "down" if name in "abc" else "up") for name in "abcde"], START)
    assert made.candidates.panic
    made.started(made.instances["a"])
    made.connect_failed(made.instances["a"], START, refused=True)
    assert {take(made).name for _ in range(16)} == {"b", "c", "d", "e"}
    made.apply([entry(name, "down" if name in "ab" else "up") for name in "abcde"], START)
    assert not made.candidates.panic


def test_a_success_of_the_probes_ends_an_ejection() -> None:
    made = pool("a", "b")
    one = made.instances["a"]
    made.started(one)
    made.connect_failed(one, START, refused=True)
    made.apply([entry("a", "down"), entry("b")], START + SECOND)
    made.apply([entry("a", since=START + 3 * SECOND), entry("b")], START + 3 * SECOND)
    assert one.serving and one.credits == 1


def test_a_second_attempt_goes_to_another_instance() -> None:
    made = pool("a", "b", credits=1)
    a, b = take(made), take(made)
    assert made.candidates.another(a) is b  # beyond its credits
    assert pool("a").candidates.another(a) is not a
    alone = pool("x")
    assert alone.candidates.another(alone.instances["x"]) is None


def heated() -> tuple[InstancePool, int]:
    """`slow` takes 10 ms, the others 1 ms, and 3000 requests per second are served."""
    made, now = pool("a", "b", "slow"), START
    for _ in range(50):
        now += TICK
        for name, latency, number in (("a", 1000, 30), ("b", 1000, 30), ("slow", 10_000, 3)):
            serve(made, made.instances[name], latency, number, now)
        made.tick(now)
    return made, now


def test_a_slow_instance_is_hot_and_asked_only_when_the_queue_takes_longer() -> None:
    made, now = heated()
    assert [one.name for one in made.instances.values() if one.hot] == ["slow"]
    now = ticks(made, now, 0.04)  # a trial would end here
    for _ in range(8):
        assert take(made).name in "ab"
    assert made.candidates.choose(5) is None
    assert take(made, waiting=40).name == "slow"  # 9 ms longer, at 3000 per second: 27 requests


def test_a_hot_instance_is_tried_now_and_then_and_returns() -> None:
    made, now = heated()
    slow = made.instances["slow"]
    tried = 0
    for _ in range(50 * 8):
        now += TICK
        for _ in range(60):
            one = take(made)
            tried += one is slow and slow.hot
            made.finished(one, now, 1000, 200)
        made.tick(now)
        if not slow.hot:
            break
    assert not slow.hot and now < START + 8 * SECOND
    assert 0 < tried < 60 * 8


def test_failures_count_as_slow() -> None:
    """Every second answer of `bad` is a quick 500: never five in a row, yet it does not look quick."""
    made, now = pool("a", "b", "bad"), START
    for _ in range(50):
        now += TICK
        for name in ("a", "b", "bad"):
            for number in range(20):
                one = made.instances[name]
                made.started(one)
                fails = name == "bad" and number % 2
                made.finished(one, now, 100 if name == "bad" else 2000, 500 if fails else 200)
        made.tick(now)
    assert made.instances["bad"].hot and not made.instances["bad"].outliers.out


actions = st.lists(
    st.tuples(
        st.sampled_from(["choose"] * 6 + ["end"] * 4 + ["tick", "apply", "another", "reachable"]),
        st.integers(0, 10_000),
    ),
    max_size=120,
)


@given(actions, st.integers(0, 1000))
@settings(max_examples=120, deadline=None)
def test_counts_are_exact_whatever_happens(steps: list[tuple[str, int]], seed: int) -> None:
    made, now = pool("a", "b", "c", "d", seed=seed), START
    inside: list[Instance] = []
    for action, value in steps:
        now += value * 10_000
        if action == "choose" and (one := made.candidates.choose(value % 40)):
            assert one.load < one.full and one.state != "drain"
            made.started(one)
            inside.append(one)
        elif action == "another" and inside and (one := made.candidates.another(inside[-1])):
            assert one is not inside[-1]
            made.started(one)
            inside.append(one)
        elif action == "end" and inside:
            end(made, inside.pop(value % len(inside)), now, value)
        elif action == "tick":
            made.tick(now)
        elif action == "apply":
            states = ["up", "up", "up", "drain", "down", "gone"]
            named = [(name, states[(value >> shift) % 6]) for shift, name in enumerate("abcd")]
            made.apply([entry(name, state, 1 + value % 5) for name, state in named if state != "gone"], now)
        elif action == "reachable":
            for one in made.unreachable():
                made.reachable(one, now)
        for one in {*inside, *made.instances.values()}:
            assert one.outstanding == inside.count(one)
    known = {*inside, *made.instances.values()}
    for one in inside:
        made.finished(one, now, 1000, 200)
    assert all(one.load == 0 for one in known)


def end(made: InstancePool, one: Instance, now: int, value: int) -> None:
    """One of the ways in which a request ends."""
    if value % 5 == 0:
        made.failed(one, now)
    elif value % 5 == 1:
        made.connect_failed(one, now, value % 2 == 0)
    elif value % 5 == 2:
        made.cancelled(one, now, value % 2 == 0)
    else:
        made.finished(one, now, value, 500 if value % 5 == 3 else 200)


def test_the_hot_path_is_short() -> None:
    """A generous bar, for a busy machine; alone it takes 0.7 us."""
    made = pool("a", "b", "c", "d", credits=8)
    for one in made.instances.values():
        for _ in range(3):
            made.started(one)

    def once() -> None:
        one = made.candidates.choose()
        assert one is not None
        made.started(one)
        made.finished(one, START, 900, 200)

    assert min(timeit.repeat(once, number=2000, repeat=7)) / 2000 < 3e-6
