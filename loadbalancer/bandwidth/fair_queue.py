"""The order in which messages wait for bandwidth: deficit round robin (Shreedhar and Varghese, 1995).

Pure.  A *ticket* is one waiting message, or one waiting piece of a flow.  A flow has at most one ticket, so
each of n waiting flows gets 1/n of the rate and a flow without data gets nothing.  A message of at most one
quantum waits for at most one round: (tickets x quantum) / rate.

Urgent tickets (small responses) are served first, in FIFO order: their requests have already waited, and
their number is bounded by the number of requests.

    ticket = Ticket(nbytes, go, now_ns)
    queue.add(ticket)                             or add(ticket, urgent=True)
    for paid in queue.serve(meter.spend):         the tickets that the tokens cover now
        if paid.go is not None: paid.go()
    meter.delay_ns(queue.next_size)               the time until the next serve(), if queue.queued
    queue.cancel(ticket)                          at any time, also after it was served
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

QUANTUM_NS = 3_000_000  # 64 flows at 10 Mbps get equal shares within 5 % of each other in 5 s
LEAST_QUANTUM = 4096  # bytes
MOST_QUANTUM = 65536


def quantum(rate: int) -> int:
    """Bytes of one turn for a rate in bit/s: rate x QUANTUM_NS, within LEAST_QUANTUM and MOST_QUANTUM."""
    return min(MOST_QUANTUM, max(LEAST_QUANTUM, rate // 8 * QUANTUM_NS // 1_000_000_000))


class Ticket:
    """A waiting message or piece. The caller of serve() calls `go` once, unless it was cancelled."""

    __slots__ = ("answer", "deficit", "go", "since_ns", "size", "waits")

    def __init__(self, size: int, go: Callable[[], None] | None, since_ns: int, answer: bool = False) -> None:
        self.size = size  # bytes
        self.go = go
        self.since_ns = since_ns  # when it was added
        self.answer = answer  # it belongs to a response
        self.deficit = 0  # bytes granted in earlier rounds
        self.waits = True  # neither paid nor cancelled


class FairQueue:
    """`queued`: bytes that wait; `answers`: the bytes among them that belong to responses."""

    def __init__(self) -> None:
        self.quantum = LEAST_QUANTUM
        self.queued = 0
        self.answers = 0
        self._urgent: deque[Ticket] = deque()
        self._round: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._round)

    def add(self, ticket: Ticket, urgent: bool = False) -> bool:
        """Add `ticket`; True if it is the next to be served, so that the caller must reset its timer."""
        self.queued += ticket.size
        if ticket.answer:
            self.answers += ticket.size
        queue = self._urgent if urgent else self._round
        queue.append(ticket)
        return len(queue) == 1 and (urgent or not self._urgent)

    def cancel(self, ticket: Ticket) -> None:
        """Cancel `ticket`: it stays queued at zero cost and is skipped when reached."""
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
        """Size in bytes of the next ticket to be served; 0 if the queue is empty."""
        for queue in (self._urgent, self._round):
            while queue and not queue[0].waits:
                queue.popleft()
            if queue:
                return queue[0].size
        return 0

    def serve(self, spend: Callable[[int], bool]) -> list[Ticket]:
        """Remove and return the tickets that `spend` pays for, in order; stop at the first it refuses.

        In each turn a ticket's deficit grows by one quantum. A ticket is paid when deficit + quantum covers
        its size.
        """
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
