"""A load balancer's bandwidth in simulated time: the real limiters over one shared bucket, no sockets.

Pure but for a memory of its own.  Time passes only from event to event; timers fire late by up to
`lateness`, and in whole milliseconds, as those of a busy event loop do.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.fair_queue import Ticket
from twofold.loadbalancer.bandwidth.lease import Lease, SharedBucket
from twofold.loadbalancer.bandwidth.limiter import BandwidthLimiter

SECOND = 1_000_000_000
MS = 1_000_000
TICK = 20 * MS


@dataclass
class Timer:
    go: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        if not self.cancelled:
            self.go()


class Loop:
    """As much of an event loop as a limiter uses."""

    def __init__(self, seed: int, lateness: int = 2 * MS) -> None:
        self.now = 1
        self.dice = random.Random(seed)
        self._lateness = lateness
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._made = 0

    def at(self, when: int, go: Callable[[], object]) -> None:
        self._made += 1
        heapq.heappush(self._events, (when, self._made, go))

    def call_later(self, delay: float, go: Callable[[], object]) -> Timer:
        late = self.dice.randrange(self._lateness + 1) if self._lateness else 0
        timer = Timer(go)
        self.at(self.now + round(delay * 1000) * MS + late, timer.fire)
        return timer

    def run(self, until: int) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, go = heapq.heappop(self._events)
            self.now = max(self.now, when)
            go()
        self.now = until


class Balancer:
    """`proxies` limiters over one bucket; what passes is written down as (ns, bytes)."""

    def __init__(self, loop: Loop, rate: int, proxies: int = 1) -> None:
        self.loop = loop
        self.fd = shared_memory.create()
        self.shared = shared_memory.attach(self.fd)
        self.bucket = SharedBucket(self.shared, self.fd, lambda: loop.now)
        self.bucket.set_rate(rate)
        self.leases = [Lease(self.bucket, number=n if proxies > 1 else None) for n in range(proxies)]
        self.limiters = [BandwidthLimiter(lease, 1.0, lambda: loop.now) for lease in self.leases]
        self.passed: list[tuple[int, int]] = []
        self.dead: list[BandwidthLimiter] = []
        for limiter in self.limiters:
            limiter.start(cast(asyncio.AbstractEventLoop, loop))
            loop.at(loop.now + loop.dice.randrange(TICK), partial(self._tick, limiter))

    def close(self) -> None:
        for lease in self.leases:
            lease.share.close()
        self.shared.close()
        os.close(self.fd)

    def kill(self, number: int) -> None:
        """It does nothing any more, and nothing is tidied up."""
        self.dead.append(self.limiters[number])

    def _tick(self, limiter: BandwidthLimiter) -> None:
        if limiter in self.dead:
            return
        limiter.tick()
        self.loop.at(self.loop.now + TICK, partial(self._tick, limiter))

    def bytes_between(self, start: int, end: int) -> int:
        return sum(nbytes for when, nbytes in self.passed if start <= when < end)


@dataclass
class Elephant:
    """A flow that always has more to send: after each piece, the next comes `gap` ns later."""

    balancer: Balancer
    limiter: BandwidthLimiter
    piece: int = 0  # bytes; 0 is as large as a turn allows
    gap: int = 20_000
    sent: int = 0

    def go(self) -> None:
        size = self.piece or self.limiter.quantum
        if self.limiter.pay(size):
            self._passed(size)
        else:
            self.limiter.wait(size, partial(self._passed, size))

    def _passed(self, size: int) -> None:
        if self.limiter in self.balancer.dead:
            return
        self.sent += size
        self.balancer.passed.append((self.balancer.loop.now, size))
        self.balancer.loop.at(self.balancer.loop.now + self.gap, self.go)


@dataclass
class PredictTraffic:
    """Small requests at random times, `a_second` on average; `waits` is how long each waited, in ns."""

    balancer: Balancer
    limiter: BandwidthLimiter
    a_second: float
    request: int = 800
    answer: int = 400
    service: int = 1 * MS
    waits: list[int] = field(default_factory=list)
    refused: int = 0

    def go(self) -> None:
        loop = self.balancer.loop
        loop.at(loop.now + int(loop.dice.expovariate(self.a_second) * SECOND), self.go)
        if self.limiter.refusal_delay(self.request):
            self.refused += 1
        else:
            self._pay(self.request, partial(self._ask, loop.now), urgent=False)

    def _ask(self, since: int) -> None:
        loop = self.balancer.loop
        loop.at(loop.now + self.service, partial(self._answer, since + self.service))

    def _answer(self, since: int) -> None:
        """In pieces, if it must wait and is larger than a turn."""
        limiter, turn = self.limiter, self.limiter.quantum

        def done() -> None:
            self.waits.append(self.balancer.loop.now - since)

        if self.answer <= turn:
            self._pay(self.answer, done, urgent=True)
        elif limiter.pay(self.answer):
            self.balancer.passed.append((self.balancer.loop.now, self.answer))
            done()
        else:
            limiter.held += self.answer
            self._piece([turn] * (self.answer // turn) + [self.answer % turn], done)

    def _piece(self, sizes: list[int], done: Callable[[], object]) -> None:
        size, *rest = sizes
        self.limiter.held -= size

        def passed() -> None:
            self.balancer.passed.append((self.balancer.loop.now, size))
            if rest and rest[0]:
                self._piece(rest, done)
            else:
                done()

        self.limiter.wait(size, passed, answer=True)

    def _pay(self, size: int, go: Callable[[], object], urgent: bool) -> Ticket | None:
        def passed() -> None:
            self.balancer.passed.append((self.balancer.loop.now, size))
            go()

        if self.limiter.pay(size):
            passed()
            return None
        return self.limiter.wait(size, passed, urgent)
