"""The bandwidth limiter of one proxy: pays for messages from a lease, or queues them.

Touches the event loop's timer and the shared bucket.  The arithmetic is in token_bucket.py, lease.py and
fair_queue.py.

    if limiter.pay(n): go                         no ticket waits, and the tokens suffice
    else: ticket = limiter.wait(n, go)            `go` is called when n bytes are paid for
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic_ns

from twofold.loadbalancer.bandwidth.fair_queue import MOST_QUANTUM, FairQueue, Ticket, quantum
from twofold.loadbalancer.bandwidth.lease import Lease

LONGEST_SLEEP_S = 0.02  # a change of the rate takes effect within this time
UNLIMITED = 1 << 60  # bytes; more than can pass between two ticks
KEEP = 0.98  # decay of the byte counts per tick: a time constant of one second
MOST_RESPONSE_RATIO = 100.0


class BandwidthLimiter:
    """`quantum`: bytes that one flow may send in a turn.

    `free`: bytes lent from the lease, which may pass by subtraction while no ticket waits.
    `response_ratio`: response bytes per request byte, a recent average.
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
        self._waited = waited  # called with the waiting time in microseconds of each paid ticket
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.announced = 0  # bytes of admitted bodies that have not arrived yet
        self.held = 0  # bytes of responses after the piece that has a ticket
        self._answers = self._others = 0.0  # decaying counts of the bytes that waited: responses, requests
        self.response_ratio = 0.0
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
        """Pay for `nbytes` if no ticket waits and the tokens suffice; True if paid."""
        if nbytes > self.free and not self.fill(nbytes):
            return False
        self.free -= nbytes
        return True

    def fill(self, nbytes: int) -> bool:
        """Raise `free` to at least `nbytes`; False if tickets wait or the tokens do not suffice."""
        self._gather()
        if self._fair_queue.queued or not self._meter.spend(nbytes):
            return False
        self.free = nbytes + self._meter.lend()
        return True

    def _gather(self) -> None:
        """Return the lent bytes to the lease."""
        if self._limited:
            self._meter.take_back(self.free)
            self.free = 0

    def wait(self, nbytes: int, go: Callable[[], None], urgent: bool = False, answer: bool = False) -> Ticket:
        """Queue `nbytes`; `go` is called when they are paid for.

        `urgent`: a whole small response; `answer`: a piece of a large one.
        """
        self._gather()
        ticket = Ticket(nbytes, go, self._clock(), urgent or answer)
        first = self._fair_queue.add(ticket, urgent)
        if first or self._timer is None:
            self._sleep()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        self._fair_queue.cancel(ticket)

    def refusal_delay(self, nbytes: int) -> int:
        """0 if a request of `nbytes` is admitted, otherwise the seconds after which to retry.

            delay_s = (debt + 8 (ahead + own)) / rate       refused if delay_s > delay_budget
            own   = nbytes (1 + response_ratio)             with the expected response
            ahead = bytes queued here and at other proxies, with their expected responses, and announced
                    bodies if nbytes > quantum;
                    at most flows x max(own, quantum): each flow gets no more than this request meanwhile

        A request is admitted, whatever its size, when nothing is ahead of it and there is no debt.
        """
        meter, rivals = self._meter, self._meter.share
        ahead = self._ahead() + rivals.elsewhere
        if nbytes > self.quantum:
            ahead += self.announced
        if not meter.rate or not (ahead or meter.debt):
            return 0
        response = int(self.response_ratio * nbytes)
        own = nbytes + response
        if 4 * response > 3 * self.quantum:  # the response likely exceeds a quantum, and waits for as much
            ahead += ahead
        flows = max(1, len(self._fair_queue) + rivals.flows)
        ahead = min(ahead, flows * max(own, self.quantum))
        delay_s = (meter.debt + 8 * (ahead + own)) / meter.rate
        return math.ceil(delay_s) if delay_s > self._budget_s else 0

    def _ahead(self) -> int:
        """Bytes that wait here, with the expected responses to the waiting requests."""
        fair_queue = self._fair_queue
        requests = fair_queue.queued - fair_queue.answers
        return fair_queue.queued + self.held + int(self.response_ratio * requests)

    def tick(self) -> None:
        """Every 20 ms: return the lease and apply the current rate."""
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
            self._timer.cancel()  # tick() calls as well as the timer
            self._timer = None
        paid = self._fair_queue.serve(self._meter.spend if self._limited else _free)
        now_ns = self._clock()
        for ticket in paid:
            self._waited((now_ns - ticket.since_ns) // 1000)
            if ticket.answer:
                self._answers += ticket.size
            else:
                self._others += ticket.size
        ratio = self._answers / self._others if self._others else 0.0
        self.response_ratio = min(ratio, MOST_RESPONSE_RATIO)
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
