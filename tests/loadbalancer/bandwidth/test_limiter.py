"""The bandwidth limiter of one proxy on a simulated loop: what passes, what waits, what is refused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import pytest

from tests.support.loadbalancer.bandwidth_simulation import MS, SECOND, Loop
from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.fair_queue import MOST_QUANTUM, Ticket, quantum
from twofold.loadbalancer.bandwidth.lease import Lease, SharedBucket
from twofold.loadbalancer.bandwidth.limiter import LONGEST_SLEEP_S, UNLIMITED, BandwidthLimiter
from twofold.loadbalancer.bandwidth.token_bucket import depth

BYTE_IN_A_US = 8_000_000  # bit/s


class Limited:
    """A limiter over a bucket of its own. `waits`: microseconds of the tickets that were paid."""

    def __init__(self, rate: int, lateness: int = 0) -> None:
        self.loop = Loop(1, lateness)
        self.fd = shared_memory.create()
        self.shared = shared_memory.attach(self.fd)
        self.bucket = SharedBucket(self.shared, self.fd, self.clock)
        self.bucket.set_rate(rate)
        self.waits: list[int] = []
        self.limiter = BandwidthLimiter(Lease(self.bucket), 1.0, self.clock, self.waits.append)
        self.limiter.start(cast(asyncio.AbstractEventLoop, self.loop))

    def clock(self) -> int:
        return self.loop.now

    def close(self) -> None:
        self.shared.close()
        os.close(self.fd)

    def empty(self) -> None:
        """Nothing is left in the bucket, to a few bytes."""
        while self.limiter.pay(10):
            pass

    def wait(self, size: int, passed: Callable[[], object] = lambda: None, **kind: bool) -> Ticket:
        return self.limiter.wait(size, lambda: (passed(), None)[1], **kind)

    def run(self, ns: int) -> None:
        self.loop.run(self.loop.now + ns)


Make = Callable[..., Limited]


@pytest.fixture
def limited() -> Iterator[Make]:
    made: list[Limited] = []

    def make(rate: int, lateness: int = 0) -> Limited:
        made.append(Limited(rate, lateness))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ---------------------------------------------------------------------- passing and waiting


def test_as_much_passes_at_once_as_the_bucket_holds(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    passed = sum(made.limiter.pay(1000) for _ in range(1000))
    assert passed == depth(BYTE_IN_A_US) // 8 // 1000
    made.run(10 * MS)
    assert sum(made.limiter.pay(1000) for _ in range(1000)) == 10


def test_without_a_rate_everything_passes(limited: Make) -> None:
    made = limited(0)
    assert all(made.limiter.pay(1 << 30) for _ in range(100))
    assert made.limiter.free > UNLIMITED // 2 and made.limiter.quantum == MOST_QUANTUM


def test_nothing_overtakes_what_waits(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    made.empty()
    made.wait(4000)
    made.run(1 * MS)
    assert not made.limiter.pay(1), "a thousand bytes are there"


@pytest.mark.parametrize("lateness", [0, 30 * MS])
def test_tickets_pass_in_order_at_the_rate(limited: Make, lateness: int) -> None:
    made = limited(BYTE_IN_A_US, lateness)
    made.empty()
    order: list[int] = []
    for number in range(100):
        made.wait(4000, partial(order.append, number))
    assert made.limiter.waiting == 100
    made.run(200 * MS)
    assert abs(len(order) - 50) <= 1 + lateness * 2 // (4 * MS)
    made.run(205 * MS + lateness)
    assert order == list(range(100)) and made.limiter.waiting == 0
    assert sorted(made.waits) == made.waits and 390_000 <= made.waits[-1] <= 405_000 + lateness // 1000


def test_urgent_tickets_pass_first(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    made.empty()
    order: list[str] = []
    made.wait(4000, partial(order.append, "usual"))
    made.wait(4000, partial(order.append, "urgent"), urgent=True)
    made.run(20 * MS)
    assert order == ["urgent", "usual"]


def test_a_cancelled_ticket_is_not_called_and_takes_no_time(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    made.empty()
    order: list[str] = []
    gone = made.wait(1_000_000, partial(order.append, "gone"))
    made.wait(4000, partial(order.append, "there"))
    made.limiter.cancel(gone)
    made.run(20 * MS)
    assert order == ["there"]


def test_a_raised_rate_is_used_within_the_longest_sleep(limited: Make) -> None:
    made = limited(1_000_000)
    made.empty()
    order: list[str] = []
    made.wait(50_000, partial(order.append, "passed"))
    made.run(10 * MS)
    made.bucket.set_rate(1_000_000_000)
    made.run(int(LONGEST_SLEEP_S * SECOND))
    assert order == ["passed"], "at the old rate it waits for 400 ms"


def test_without_a_rate_the_next_tick_frees_what_waits(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    made.empty()
    order: list[str] = []
    made.wait(10**9, partial(order.append, "passed"))
    made.bucket.set_rate(0)
    made.limiter.tick()
    assert order == ["passed"] and made.limiter.waiting == 0


def test_the_quantum_follows_the_rate(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    assert made.limiter.quantum == quantum(BYTE_IN_A_US)
    made.bucket.set_rate(100_000_000)
    made.limiter.tick()
    assert made.limiter.quantum == quantum(100_000_000)


def test_echo_is_the_bytes_of_answers_per_byte_of_requests(limited: Make) -> None:
    made = limited(BYTE_IN_A_US)
    made.empty()
    made.wait(1000)
    made.wait(3000, answer=True)
    made.run(20 * MS)
    assert made.limiter.response_ratio == 3.0


# ---------------------------------------------------------------------- refusals


def test_a_request_is_refused_by_the_delay_that_it_would_have(limited: Make) -> None:
    made = limited(1_000_000)
    limiter = made.limiter
    assert limiter.refusal_delay(10_000_000) == 0  # nothing is ahead of it
    tickets = [limiter.wait(4000, lambda: None) for _ in range(250)]
    assert limiter.refusal_delay(1000) == 9  # 8 s ahead, and its own
    for ticket in tickets:
        limiter.cancel(ticket)
    assert limiter.refusal_delay(1000) == 0
    for _ in range(500):
        limiter.wait(100, lambda: None)
    limiter.response_ratio = 3.0
    assert limiter.refusal_delay(1000) == 2  # 50 KB and their answers, then its own 4
    limiter.response_ratio = 4.0
    assert limiter.refusal_delay(1000) == 5  # its answer takes turns: 250 KB once more


def test_a_small_request_is_not_refused_because_of_a_few_large_ones(limited: Make) -> None:
    made = limited(1_000_000)
    limiter = made.limiter
    limiter.pay(65536)
    for _ in range(3):
        limiter.wait(limiter.quantum, lambda: None)
        limiter.held += 1_000_000
    limiter.announced = 10_000_000
    assert limiter.refusal_delay(1000) == 0
    assert limiter.refusal_delay(10_000) == 0
    assert limiter.refusal_delay(1_000_000) == 32  # three that want as much, and its own


def test_without_a_rate_nothing_is_refused(limited: Make) -> None:
    made = limited(0)
    made.limiter.announced = made.limiter.held = 1 << 40
    assert made.limiter.refusal_delay(1 << 30) == 0
