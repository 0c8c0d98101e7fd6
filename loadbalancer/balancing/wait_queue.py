"""The one queue of the proxy: requests for which no instance has had room yet, oldest first.

Pure arithmetic, the clock is an argument (monotonic ns).  It is bounded by count, by bytes, and by
time: nobody waits longer than the limit or its own deadline, and who could only be served too late,
as fast as the queue drains now, is turned away at once instead of after the wait.

    waiting.push(request, size, now_ns, deadline_ns)  False: answer 503 with waiting.retry_after()
    waiting.pop()                                 the oldest, when an instance has room
    waiting.cancel(request)                       its client has left
    waiting.tick(now_ns)                          every 20 ms: those whose time is over, to be answered 503

Push, pop and cancel take the same time however long the queue is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

SECOND_NS = 1_000_000_000
SMOOTHING_NS = SECOND_NS // 2  # over which the drain rate is averaged
PROOF_NS = SECOND_NS // 4  # an instance that has stopped for a moment is no reason to turn anybody away
STALE_NS = SECOND_NS  # so long without a queue: what drained it is no longer known
LONGEST_RETRY_S = 60

T = TypeVar("T", bound=Hashable)


class WaitQueue(Generic[T]):
    """A bounded FIFO of requests. `wait_ns` in ns; `rate` is what left it per second, 0 while unknown."""

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
        # Its bytes, when it came, and when its time is over
        self.entries: OrderedDict[T, tuple[int, int, int]] = OrderedDict()
        self.since_ns = 0  # when the one came that was popped last
        self._bytes = 0
        self._earliest_ns = 0  # no entry's time is over before
        self._popped = 0  # since the last tick
        self._ticked_ns = 0  # when; 0 while the queue was empty then
        self._used_ns = 0  # when something last waited
        self._watched_ns = 0  # ns that `rate` is the average of, at least up to SMOOTHING_NS

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        return self._bytes

    def push(self, request: T, size: int, now_ns: int, deadline_ns: int) -> bool:
        """Let the request wait, with `size` bytes of body; False if it would not fit, or not make it."""
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
        """The oldest, which an instance takes now."""
        if not self.entries:
            return None
        request, (size, self.since_ns, _) = self.entries.popitem(last=False)
        self._bytes -= size
        self._popped += 1
        return request

    def cancel(self, request: T) -> bool:
        """Forget the request; False if it does not wait (any more)."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        self._bytes -= entry[0]
        return True

    def tick(self, now_ns: int) -> list[T]:
        """Measure how fast the queue drains; whose time is over leaves it and is returned."""
        self._measure(now_ns)
        if not self.entries or now_ns < self._earliest_ns:
            return []
        late = [request for request, (_, _, until_ns) in self.entries.items() if until_ns <= now_ns]
        for request in late:
            self.cancel(request)
        self._earliest_ns = min((until_ns for _, _, until_ns in self.entries.values()), default=0)
        return late

    def _measure(self, now_ns: int) -> None:
        """Only between two ticks that both saw a queue does its flow say what the pool can do."""
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
        """Whole seconds until what waits now will have been served, 1 to 60."""
        if not self.rate:
            return 1
        return max(1, min(LONGEST_RETRY_S, math.ceil(len(self.entries) / self.rate)))
