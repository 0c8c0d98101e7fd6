"""The retry budget: second attempts may be a fifth of the requests, so that they never become the load.

Pure arithmetic, the clock is an argument (monotonic ns).  A window of ten seconds, in ten slots: what
falls out of it no longer pays for anything.

    budget.requests += 1                    for each request, first attempts only
    if budget.take(now): ...                one more attempt
    budget.tick(now)                        now and then, so that requests fall into the right slot
"""

from __future__ import annotations

from collections import deque

SLOT = 1_000_000_000
SLOTS = 10
PERCENT = 20
FLOOR = 3  # attempts in any window, however few the requests


class RetryBudget:
    __slots__ = ("_old_requests", "_old_retries", "_slot", "_window", "requests", "retries")

    def __init__(self, now_ns: int) -> None:
        self.requests = 0  # in the slot that is open
        self.retries = 0
        self._slot = now_ns // SLOT
        self._window: deque[tuple[int, int, int]] = deque()  # closed slots: number, requests, retries
        self._old_requests = self._old_retries = 0  # what the window adds up to

    def take(self, now_ns: int) -> bool:
        """Whether one more attempt may be made; it is counted if so."""
        self.tick(now_ns)
        requests, retries = self.requests + self._old_requests, self.retries + self._old_retries
        if retries >= FLOOR and (retries + 1) * 100 > requests * PERCENT:
            return False
        self.retries += 1
        return True

    def tick(self, now_ns: int) -> None:
        """Close the slot when its second is over, and forget what is older than the window."""
        slot = now_ns // SLOT
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
