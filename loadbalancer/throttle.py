"""Who may pass now, and who waits for bandwidth: the meter and the shaper of one proxy, on its loop.

Touches the event loop's timer and the shared bucket; the arithmetic is in bucket, ledger and drr.

    if not throttle.active or throttle.pay(n): go        the usual: nobody waits, tokens are there
    else: toll = throttle.wait(n, go)                    `go` is called when n bytes are paid for
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic_ns

from loadbalancer.drr import Shaper, Toll, quantum
from loadbalancer.ledger import Meter

LONGEST_SLEEP = 0.02  # seconds: a live edit is felt within it
MOST_QUANTUM = 65536


class Throttle:
    """`active`: there is a limit. `quantum`: bytes that one flow may pass in a turn."""

    def __init__(self, meter: Meter, budget: float) -> None:
        self._meter = meter
        self._shaper = Shaper()
        self._budget = budget
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.announced = 0  # bytes of admitted bodies that are still to come
        self.active = False
        self.quantum = MOST_QUANTUM
        self.tick()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def waiting(self) -> int:
        return len(self._shaper)

    def pay(self, nbytes: int) -> bool:
        """Whether so much may pass at once. Nobody overtakes those who wait."""
        return not self._shaper.queued and self._meter.spend(nbytes)

    def wait(self, nbytes: int, go: Callable[[], None], urgent: bool = False) -> Toll:
        toll = Toll(nbytes, go, monotonic_ns())
        self._shaper.add(toll, urgent)
        if self._timer is None:
            self._sleep()
        return toll

    def cancel(self, toll: Toll) -> None:
        self._shaper.cancel(toll)

    def refusal_delay(self, nbytes: int) -> int:
        """0 if a request with so long a body is admitted, otherwise the seconds after which to try again.

        Whatever its size, it is admitted when nothing is ahead of it.
        """
        large = nbytes > self.quantum
        ahead = self._meter.debt + 8 * (self._shaper.queued + (self.announced if large else 0))
        if not ahead or not self.active:
            return 0
        delay = (ahead + 8 * nbytes) / self._meter.rate
        return math.ceil(delay) if delay > self._budget else 0

    def tick(self) -> None:
        """Every 20 ms: the rate may have been changed."""
        self._meter.settle()
        rate = self._meter.rate
        self.active = rate > 0
        self.quantum = self._shaper.quantum = quantum(rate) if rate else MOST_QUANTUM
        if self._shaper.queued and not self.active:
            self._serve()

    def _serve(self) -> None:
        self._timer = None
        spend = self._meter.spend if self.active else _free
        for toll in self._shaper.serve(spend):
            if toll.go is not None:
                toll.go()
        if self._shaper.queued and self._timer is None:
            self._sleep()

    def _sleep(self) -> None:
        assert self._loop is not None
        delay = self._meter.delay_ns(self._shaper.next_size) / 1e9
        self._timer = self._loop.call_later(min(delay, LONGEST_SLEEP), self._serve)


def _free(nbytes: int) -> bool:
    return True
