"""The wait queue of a proxy: requests for which no instance has had a free credit, oldest first.

Pure arithmetic, the clock is an argument (monotonic ns).  The queue is bounded by count, by bytes, and by
time: a request waits at most until the wait limit or its own deadline.  A request whose expected wait, length
/ drain rate, exceeds that is refused at once.

    waiting.push(request, size, now_ns, deadline_ns)  False: refuse with 503 and waiting.retry_after()
    waiting.pop()                                 the oldest, when an instance has a free credit
    waiting.cancel(request)                       its client has disconnected
    waiting.tick(now_ns)                          every 20 ms: the expired ones, to be refused with 503

Push, pop and cancel take constant time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

SECOND_NS = 1_000_000_000
SMOOTHING_NS = SECOND_NS // 2  # over which the drain rate is averaged
PROOF_NS = SECOND_NS // 4  # least observation time before `rate` is used to refuse requests
STALE_NS = SECOND_NS  # time without a queue after which `rate` is unknown
LONGEST_RETRY_S = 60

T = TypeVar("T", bound=Hashable)


class WaitQueue(Generic[T]):
    """A bounded FIFO of requests. `count`, `size`, `wait_ns`: its limits in requests, bytes and ns.

    `rate`: requests per second that leave the queue, 0 while unknown.
    """

    __slots__ = (
        "_bytes",
        "_earliest_ns",
        "_popped",
        "_ticked_ns",
        "_used_ns",
        "_watched_ns",
        "count",
        "entries",
        "rate",
        "since_ns",
        "size",
        "wait_ns",
    )

    def __init__(self, count: int = 1024, size: int = 64 << 20, wait_ns: int = SECOND_NS) -> None:
        self.count = count
        self.size = size
        self.wait_ns = wait_ns
        self.rate = 0.0
        # request: (bytes, arrival ns, expiry ns)
        self.entries: OrderedDict[T, tuple[int, int, int]] = OrderedDict()
        self.since_ns = 0  # arrival of the request that was popped last
        self._bytes = 0
        self._earliest_ns = 0  # lower bound of the entries' expiry
        self._popped = 0  # since the last tick
        self._ticked_ns = 0  # time of the last tick; 0 if the queue was empty then
        self._used_ns = 0  # last tick at which the queue was not empty
        self._watched_ns = 0  # total observation time of `rate`

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        return self._bytes

    def push(self, request: T, size: int, now_ns: int, deadline_ns: int) -> bool:
        """Queue the request with its `size` bytes of body; False if it does not fit or would expire."""
        ahead = len(self.entries)
        until_ns = min(now_ns + self.wait_ns, deadline_ns)
        if ahead >= self.count or self._bytes + size > self.size:
            return False
        if (
            ahead
            and self.rate
            and self._watched_ns >= PROOF_NS
            and now_ns + ahead / self.rate * SECOND_NS > until_ns
        ):
            return False
        if not ahead or until_ns < self._earliest_ns:
            self._earliest_ns = until_ns
        self.entries[request] = (size, now_ns, until_ns)
        self._bytes += size
        return True

    def pop(self) -> T | None:
        """Remove and return the oldest request; None if the queue is empty."""
        if not self.entries:
            return None
        request, (size, self.since_ns, _) = self.entries.popitem(last=False)
        self._bytes -= size
        self._popped += 1
        return request

    def cancel(self, request: T) -> bool:
        """Remove the request; False if it is not queued."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        self._bytes -= entry[0]
        return True

    def tick(self, now_ns: int) -> list[T]:
        """Update the drain rate; remove and return the expired requests."""
        self._measure(now_ns)
        if not self.entries or now_ns < self._earliest_ns:
            return []
        late = [request for request, (_, _, until_ns) in self.entries.items() if until_ns <= now_ns]
        for request in late:
            self.cancel(request)
        self._earliest_ns = min((until_ns for _, _, until_ns in self.entries.values()), default=0)
        return late

    def _measure(self, now_ns: int) -> None:
        """Average the drain rate over intervals in which the queue was not empty at both ends."""
        if self.entries:
            if self._ticked_ns:
                elapsed_ns = max(1, now_ns - self._ticked_ns)
                self._watched_ns += elapsed_ns
                share = elapsed_ns / min(self._watched_ns, elapsed_ns + SMOOTHING_NS)
                self.rate += (self._popped * SECOND_NS / elapsed_ns - self.rate) * share
            self._used_ns = self._ticked_ns = now_ns
        else:
            self._ticked_ns = 0
            if now_ns - self._used_ns > STALE_NS:
                self.rate, self._watched_ns = 0.0, 0
        self._popped = 0

    def retry_after(self) -> int:
        """Whole seconds until the present queue will have been served, 1 to LONGEST_RETRY_S."""
        if not self.rate:
            return 1
        return max(1, min(LONGEST_RETRY_S, math.ceil(len(self.entries) / self.rate)))
