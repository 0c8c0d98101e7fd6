"""Who of those that wait for bandwidth is next: deficit round robin (Shreedhar and Varghese, 1995).

Pure.  What waits is a *ticket*: one message, or one piece of a flow.  A flow waits with one piece at a
time, so a flow without anything to send has no share, and each of n flows gets 1/n.  A small message
waits for one round at most: (tickets x quantum) / rate.

Small answers go first, in the order in which they came: their requests have waited already,
and there are only as many as there were requests.

    ticket = Ticket(nbytes, go, now)
    fair queue.add(ticket)                        or add(ticket, urgent=True)
    for paid in fair queue.serve(meter.spend):  as many as there are tokens for, now
        if paid.go is not None: paid.go()
    meter.delay_ns(fair queue.next_size)        when to serve again, if fair queue.queued
    fair queue.cancel(ticket)                     at any time, also when it has been served
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

QUANTUM_NS = 3_000_000  # 64 flows at 10 Mbps get equal shares within 5 % of each other in 5 s
LEAST_QUANTUM = 4096  # bytes
MOST_QUANTUM = 65536


def quantum(rate: int) -> int:
    """Bytes of one turn, for a rate in bit/s."""
    return min(MOST_QUANTUM, max(LEAST_QUANTUM, rate // 8 * QUANTUM_NS // 1_000_000_000))


class Ticket:
    """Something that waits; `go` is to be called once, when it is paid for, unless it was cancelled."""

    __slots__ = ("answer", "deficit", "go", "since_ns", "size", "waits")

    def __init__(self, size: int, go: Callable[[], None] | None, since_ns: int, answer: bool = False) -> None:
        self.size = size  # bytes
        self.go = go
        self.since_ns = since_ns  # ns
        self.answer = answer  # or a part of one
        self.deficit = 0
        self.waits = True  # neither paid nor cancelled


class FairQueue:
    """`queued`: bytes that wait; `answers`: as many of them belong to answers."""

    def __init__(self) -> None:
        self.quantum = LEAST_QUANTUM
        self.queued = 0
        self.answers = 0
        self._urgent: deque[Ticket] = deque()
        self._round: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._round)

    def add(self, ticket: Ticket, urgent: bool = False) -> bool:
        """Whether it is the next one, so that a timer that was set for another is wrong."""
        self.queued += ticket.size
        if ticket.answer:
            self.answers += ticket.size
        queue = self._urgent if urgent else self._round
        queue.append(ticket)
        return len(queue) == 1 and (urgent or not self._urgent)

    def cancel(self, ticket: Ticket) -> None:
        """It stays in the queue as a nothing, and leaves it for nothing."""
        ticket.go = None
        if ticket.waits:
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        ticket.waits = False
        self.queued -= ticket.size
        if ticket.answer:
            self.answers -= ticket.size

    @property
    def next_size(self) -> int:
        """Bytes that must be paid before anybody may go on."""
        for queue in (self._urgent, self._round):
            while queue and not queue[0].waits:
                queue.popleft()
            if queue:
                return queue[0].size
        return 0

    def serve(self, spend: Callable[[int], bool]) -> list[Ticket]:
        """Those that `spend` has paid for, in order; they are out of the queue."""
        paid: list[Ticket] = []
        while self._urgent:
            if not self._pay(self._urgent, spend, paid):
                return paid
        while self._round:
            ticket = self._round[0]
            if ticket.waits and ticket.deficit + self.quantum < ticket.size:
                ticket.deficit += self.quantum
                self._round.rotate(-1)
            elif not self._pay(self._round, spend, paid):
                return paid
        return paid

    def _pay(self, queue: deque[Ticket], spend: Callable[[int], bool], paid: list[Ticket]) -> bool:
        ticket = queue[0]
        if ticket.waits:
            if not spend(ticket.size):
                return False
            self._leave(ticket)
            paid.append(ticket)
        queue.popleft()
        return True
