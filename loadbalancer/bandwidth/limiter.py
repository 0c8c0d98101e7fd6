"""Who may pass now, and who waits for bandwidth: the meter and the fair queue of one proxy, on its loop.

Touches the event loop's timer and the shared bucket; the arithmetic is in bucket, bucket and drr.

    if limiter.pay(n): go                               the usual: nobody waits, tokens are there
    else: ticket = limiter.wait(n, go)                    `go` is called when n bytes are paid for
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic_ns

from twofold.loadbalancer.bandwidth.fair_queue import FairQueue, Ticket, quantum
from twofold.loadbalancer.bandwidth.lease import Lease

LONGEST_SLEEP_S = 0.02  # seconds: a live edit is felt within it
MOST_QUANTUM = 65536
UNLIMITED = 1 << 60  # bytes; more than pass between two ticks
KEEP = 0.98  # of what was counted, from tick to tick: it is of the last second or so
MOST_ECHO = 100.0


class BandwidthLimiter:
    """`quantum`: bytes that one flow may pass in a turn.

    `free`: bytes that may pass without a word, while nobody waits. pay() is spelt out where calls cost
    too much: whoever takes no more than `free`, or gets it by fill(), subtracts it and goes.
    """

    def __init__(
        self,
        meter: Lease,
        budget_s: float,
        clock: Callable[[], int] = monotonic_ns,
        waited: Callable[[int], None] = lambda microseconds: None,
    ) -> None:
        self._meter = meter
        self._fair_queue = FairQueue()
        self._budget_s = budget_s
        self._waited = waited  # is told the microseconds of each ticket that is paid
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.announced = 0  # bytes of admitted bodies that are still to come
        self.held = 0  # bytes of answers behind those of their pieces that wait
        self._answers = self._others = 0.0  # bytes that have waited, of late
        self.echo = 0.0  # bytes of answers that follow each other byte
        self._limited = False
        self.free = 0
        self.quantum = MOST_QUANTUM
        self.tick()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def waiting(self) -> int:
        return len(self._fair_queue)

    def pay(self, nbytes: int) -> bool:
        """Whether so much may pass at once. Nobody overtakes those who wait."""
        if nbytes > self.free and not self.fill(nbytes):
            return False
        self.free -= nbytes
        return True

    def fill(self, nbytes: int) -> bool:
        """Whether so much is free now."""
        self._gather()
        if self._fair_queue.queued or not self._meter.spend(nbytes):
            return False
        self.free = nbytes + self._meter.lend()
        return True

    def _gather(self) -> None:
        """The meter has all of the lease again."""
        if self._limited:
            self._meter.take_back(self.free)
            self.free = 0

    def wait(self, nbytes: int, go: Callable[[], None], urgent: bool = False, answer: bool = False) -> Ticket:
        """`urgent`: a whole small answer; `answer`: a piece of a large one."""
        self._gather()
        ticket = Ticket(nbytes, go, self._clock(), urgent or answer)
        first = self._fair_queue.add(ticket, urgent)
        if first or self._timer is None:
            self._sleep()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        self._fair_queue.cancel(ticket)

    def refusal_delay(self, nbytes: int) -> int:
        """0 if a request of so many bytes is admitted, otherwise the seconds after which to try again.

        Whatever its size, it is admitted when nothing is ahead of it.  Ahead are the debt, what waits
        here and at other proxies, and the answers that those who wait will get, judging by the last;
        but no flow gets more than this one while this one waits for its turn.
        """
        meter, rivals = self._meter, self._meter.share
        ahead = self._ahead() + rivals.elsewhere
        if nbytes > self.quantum:
            ahead += self.announced
        if not meter.rate or not (ahead or meter.debt):
            return 0
        back = int(self.echo * nbytes)
        own = nbytes + back
        if 4 * back > 3 * self.quantum:  # its answer is likely to take turns, among those of as many again
            ahead += ahead
        flows = max(1, len(self._fair_queue) + rivals.flows)
        ahead = min(ahead, flows * max(own, self.quantum))
        delay_s = (meter.debt + 8 * (ahead + own)) / meter.rate
        return math.ceil(delay_s) if delay_s > self._budget_s else 0

    def _ahead(self) -> int:
        """Bytes: what waits here, and what will follow it."""
        fair_queue = self._fair_queue
        return fair_queue.queued + self.held + int(self.echo * (fair_queue.queued - fair_queue.answers))

    def tick(self) -> None:
        """Every 20 ms: the rate may have been changed."""
        self._gather()
        self._meter.settle(len(self._fair_queue), self._ahead())
        rate = self._meter.rate
        self._limited = rate > 0
        self.free = 0 if self._limited else UNLIMITED
        self.quantum = self._fair_queue.quantum = quantum(rate) if rate else MOST_QUANTUM
        self._answers *= KEEP
        self._others *= KEEP
        if self._fair_queue.queued and not self._limited:
            self._serve()

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # it may not be the one that calls
            self._timer = None
        paid = self._fair_queue.serve(self._meter.spend if self._limited else _free)
        now_ns = self._clock()
        for ticket in paid:
            self._waited((now_ns - ticket.since_ns) // 1000)
            if ticket.answer:
                self._answers += ticket.size
            else:
                self._others += ticket.size
        self.echo = min(self._answers / self._others, MOST_ECHO) if self._others else 0.0
        if self._fair_queue.queued:
            self._sleep()
        else:
            self._meter.share.publish(now_ns, 0, 0)
        for ticket in paid:
            if ticket.go is not None:
                ticket.go()

    def _sleep(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._meter.share.publish(self._clock(), len(self._fair_queue), self._ahead())
        delay_s = self._meter.delay_ns(self._fair_queue.next_size) / 1e9
        self._timer = self._loop.call_later(min(delay_s, LONGEST_SLEEP_S), self._serve)


def _free(nbytes: int) -> bool:
    return True
