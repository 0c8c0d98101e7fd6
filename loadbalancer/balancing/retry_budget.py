"""The retry budget: at most PERCENT of the requests may be retried, so that retries cannot overload a pool.

Pure arithmetic, the clock is an argument (monotonic ns).  Counts are kept for a sliding window of SLOTS
slots of SLOT_NS each.

    budget.requests += 1                    for each first attempt
    if budget.take(now_ns): ...             retry once
    budget.tick(now_ns)                     periodically, so that requests are counted in the right slot
"""

from __future__ import annotations

from collections import deque

SLOT_NS = 1_000_000_000
SLOTS = 10
PERCENT = 20
FLOOR = 3  # retries that are always allowed per window


class RetryBudget:
    __slots__ = ("_old_requests", "_old_retries", "_slot", "_window", "requests", "retries")

    def __init__(self, now_ns: int) -> None:
        self.requests = 0  # in the current slot
        self.retries = 0
        self._slot = now_ns // SLOT_NS
        self._window: deque[tuple[int, int, int]] = deque()  # closed slots: number, requests, retries
        self._old_requests = self._old_retries = 0  # sums over the closed slots

    def take(self, now_ns: int) -> bool:
        """Count one retry and return True, if the budget allows it."""
        self.tick(now_ns)
        requests, retries = self.requests + self._old_requests, self.retries + self._old_retries
        if retries >= FLOOR and (retries + 1) * 100 > requests * PERCENT:
            return False
        self.retries += 1
        return True

    def tick(self, now_ns: int) -> None:
        """Close the slot when its time is over, and drop slots older than the window."""
        slot = now_ns // SLOT_NS
        if slot == self._slot:
            return
        self._window.append((self._slot, self.requests, self.retries))
        self._old_requests += self.requests
        self._old_retries += self.retries
        self.requests = self.retries = 0
        self._slot = slot
        while self._window and self._window[0][0] <= slot - SLOTS:
            _, requests, retries = self._window.popleft()
            self._old_requests -= requests
            self._old_retries -= retries
