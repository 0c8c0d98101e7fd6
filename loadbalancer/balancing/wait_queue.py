"""The one queue of the proxy: requests for which no instance has had room yet, oldest first.

Pure arithmetic, the clock is an argument (monotonic ns).  It is bounded by count, by bytes, and by
time: nobody waits longer than the limit or its own deadline, and who could only be served too late,
as fast as the queue drains now, is turned away at once instead of after the wait.

    waiting.push(request, size, now, deadline)    False: answer 503 with waiting.retry_after()
    waiting.pop()                                 the oldest, when an instance has room
    waiting.cancel(request)                       its client has left
    waiting.tick(now)                             every 20 ms: those whose time is over, to be answered 503

Push, pop and cancel take the same time however long the queue is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

SECOND = 1_000_000_000
SMOOTHING = SECOND // 2  # over which the drain rate is averaged
PROOF = SECOND // 4  # an instance that has stopped for a moment is no reason to turn anybody away
STALE = SECOND  # so long without a queue: what drained it is no longer known
LONGEST_RETRY = 60

T = TypeVar("T", bound=Hashable)


class WaitQueue(Generic[T]):
    """A bounded FIFO of requests. `wait` in ns; `rate` is what left it per second, 0 while unknown."""

    __slots__ = (
        "_bytes",
        "_earliest",
        "_popped",
        "_ticked",
        "_used",
        "_watched",
        "count",
        "entries",
        "rate",
        "since",
        "size",
        "wait",
    )

    def __init__(self, count: int = 1024, size: int = 64 << 20, wait: int = SECOND) -> None:
        self.count = count
        self.size = size
        self.wait = wait
        self.rate = 0.0
        # Its bytes, when it came, and when its time is over
        self.entries: OrderedDict[T, tuple[int, int, int]] = OrderedDict()
        self.since = 0  # when the one came that was popped last
        self._bytes = 0
        self._earliest = 0  # no entry's time is over before
        self._popped = 0  # since the last tick
        self._ticked = 0  # when; 0 while the queue was empty then
        self._used = 0  # when something last waited
        self._watched = 0  # ns that `rate` is the average of, at least up to SMOOTHING

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        return self._bytes

    def push(self, request: T, size: int, now: int, deadline: int) -> bool:
        """Let the request wait, with `size` bytes of body; False if it would not fit, or not make it."""
        ahead = len(self.entries)
        until = min(now + self.wait, deadline)
        if ahead >= self.count or self._bytes + size > self.size:
            return False
        if ahead and self.rate and self._watched >= PROOF and now + ahead / self.rate * SECOND > until:
            return False
        if not ahead or until < self._earliest:
            self._earliest = until
        self.entries[request] = (size, now, until)
        self._bytes += size
        return True

    def pop(self) -> T | None:
        """The oldest, which an instance takes now."""
        if not self.entries:
            return None
        request, (size, self.since, _) = self.entries.popitem(last=False)
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

    def tick(self, now: int) -> list[T]:
        """Measure how fast the queue drains; whose time is over leaves it and is returned."""
        self._measure(now)
        if not self.entries or now < self._earliest:
            return []
        late = [request for request, (_, _, until) in self.entries.items() if until <= now]
        for request in late:
            self.cancel(request)
        self._earliest = min((until for _, _, until in self.entries.values()), default=0)
        return late

    def _measure(self, now: int) -> None:
        """Only between two ticks that both saw a queue does its flow say what the pool can do."""
        if self.entries:
            if self._ticked:
                elapsed = max(1, now - self._ticked)
                self._watched += elapsed
                share = elapsed / min(self._watched, elapsed + SMOOTHING)
                self.rate += (self._popped * SECOND / elapsed - self.rate) * share
            self._used = self._ticked = now
        else:
            self._ticked = 0
            if now - self._used > STALE:
                self.rate, self._watched = 0.0, 0
        self._popped = 0

    def retry_after(self) -> int:
        """Whole seconds until what waits now will have been served, 1 to 60."""
        if not self.rate:
            return 1
        return max(1, min(LONGEST_RETRY, math.ceil(len(self.entries) / self.rate)))
