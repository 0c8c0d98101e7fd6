from __future__ import annotations

import time
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.loadbalancer.balancing.wait_queue import SECOND_NS, WaitQueue

MS = 1_000_000
FAR = 1 << 60


def queue(count: int = 10, size: int = 1000, wait_ns: int = SECOND_NS) -> WaitQueue[str]:
    return WaitQueue(count, size, wait_ns)


def test_first_in_first_out() -> None:
    waiting = queue()
    for name in "abc":
        assert waiting.push(name, 10, 0, FAR)
    assert len(waiting) == 3 and waiting.bytes == 30
    assert [waiting.pop() for _ in range(4)] == ["a", "b", "c", None]
    assert waiting.bytes == 0


def test_bounded_by_count_and_bytes() -> None:
    waiting = queue(count=2, size=100)
    assert waiting.push("a", 60, 0, FAR)
    assert not waiting.push("b", 41, 0, FAR)
    assert waiting.push("c", 40, 0, FAR)
    assert not waiting.push("d", 0, 0, FAR)
    assert waiting.cancel("a") and not waiting.cancel("a")
    assert waiting.push("d", 60, 0, FAR)
    assert waiting.pop() == "c"


def test_no_request_waits_longer_than_the_limit_or_its_deadline() -> None:
    waiting = queue(wait_ns=100 * MS)
    waiting.push("patient", 1, 0, FAR)
    waiting.push("hasty", 1, 0, 30 * MS)
    waiting.push("later", 1, 50 * MS, FAR)
    assert waiting.tick(20 * MS) == []
    assert waiting.tick(40 * MS) == ["hasty"]
    assert waiting.tick(99 * MS) == []
    assert waiting.tick(100 * MS) == ["patient"]
    assert waiting.tick(149 * MS) == []
    assert waiting.tick(150 * MS) == ["later"]
    assert len(waiting) == 0 and waiting.bytes == 0


def drained(waiting: WaitQueue[str], per_tick: int, ticks: int) -> int:
    """Keep 5 waiting while `per_tick` leave every 20 ms; the time afterwards."""
    now, number = 0, 0
    for _ in range(ticks):
        while len(waiting) < 5 + per_tick:
            assert waiting.push(f"r{number}", 1, now, FAR)
            number += 1
        waiting.tick(now)
        for _ in range(per_tick):
            waiting.pop()
        now += 20 * MS
    waiting.tick(now)
    return now


def test_a_request_that_would_be_served_too_late_is_refused_at_once() -> None:
    waiting = queue(count=10_000, size=1 << 20)
    now = drained(waiting, per_tick=2, ticks=50)
    assert abs(waiting.rate - 100) < 5  # per second
    while waiting.push(f"x{len(waiting)}", 1, now, FAR):
        pass
    assert 95 <= len(waiting) <= 107  # what leaves within the second that a request may wait
    assert not waiting.push("hasty", 1, now, now + 10 * MS)


def test_retry_after_follows_the_drain_rate() -> None:
    waiting = queue(count=10_000, size=1 << 20, wait_ns=10 * SECOND_NS)
    assert waiting.retry_after() == 1
    now = drained(waiting, per_tick=2, ticks=50)
    for number in range(245):
        assert waiting.push(f"y{number}", 1, now, FAR)
    assert waiting.retry_after() == 3


def test_a_pool_that_halts_for_a_moment_is_no_reason_to_refuse() -> None:
    """It answered one request in 100 ms, just now, and 50 are waiting: who knows."""
    waiting = queue(count=1000, size=1 << 20)
    for number in range(50):
        assert waiting.push(f"x{number}", 1, 0, FAR)
    for now in range(0, 120 * MS, 20 * MS):
        waiting.tick(now)
    waiting.pop()
    waiting.tick(120 * MS)
    assert waiting.push("y", 1, 120 * MS, FAR)
    for now in range(140 * MS, 300 * MS, 20 * MS):
        waiting.tick(now)
    assert not waiting.push("z", 1, 300 * MS, FAR)  # it is more than a moment


def test_an_old_drain_rate_refuses_no_request() -> None:
    """When everything hung, nothing drained; the next queue must not suffer for it."""
    waiting = queue(wait_ns=100 * MS)
    waiting.push("a", 1, 0, FAR)
    waiting.push("b", 1, 0, FAR)
    waiting.tick(0)
    waiting.pop()
    for now in range(0, 200 * MS, 20 * MS):
        waiting.tick(now + 20 * MS)
    assert waiting.rate < 50
    for now in range(200 * MS, 1400 * MS, 20 * MS):
        waiting.tick(now)
    assert waiting.rate == 0
    assert all(waiting.push(name, 1, 1400 * MS, FAR) for name in "cdefg")


@dataclass(frozen=True)
class Entry:
    name: int
    size: int
    until: int


operations = st.lists(
    st.tuples(st.sampled_from(["push", "push", "pop", "cancel", "tick"]), st.integers(0, 400)), max_size=80
)


@given(operations)
@settings(max_examples=150, deadline=None)
def test_agrees_with_a_plain_list(steps: list[tuple[str, int]]) -> None:
    waiting: WaitQueue[int] = WaitQueue(8, 1000, 300)
    waiting.rate = 0.0
    model: list[Entry] = []
    now = 1
    for name, (action, value) in enumerate(steps):
        now += value % 50
        if action == "push":
            fits = len(model) < 8 and sum(one.size for one in model) + value <= 1000
            waiting.rate = 0.0  # the drain rate has tests of its own
            assert waiting.push(name, value, now, now + value) == fits
            if fits:
                model.append(Entry(name, value, now + min(value, 300)))
        elif action == "pop":
            assert waiting.pop() == (model.pop(0).name if model else None)
        elif action == "cancel" and model:
            gone = model.pop(value % len(model))
            assert waiting.cancel(gone.name)
        elif action == "tick":
            late = [one.name for one in model if one.until <= now]
            assert waiting.tick(now) == late
            model = [one for one in model if one.until > now]
        assert len(waiting) == len(model) and waiting.bytes == sum(one.size for one in model)


def test_a_long_queue_costs_no_more() -> None:
    """Cancelling from the middle and taking from the front of 50 000 must not search."""
    waiting: WaitQueue[int] = WaitQueue(100_000, 1 << 40, SECOND_NS)
    for number in range(50_000):
        waiting.push(number, 1, 0, FAR)
    begin = time.perf_counter()
    for number in range(25_000, 50_000):
        waiting.cancel(number)
    while waiting.pop() is not None:
        pass
    assert time.perf_counter() - begin < 30  # 0.03 s; minutes if it searched
