"""Bandwidth between its minimum and its maximum: raised while it is used up, lowered when it is not.

Pure; the clock is an argument (monotonic ns).  Rates in bit/s.
"""

from __future__ import annotations

SECOND = 1_000_000_000
BUSY, BUSY_NS = 0.8, 60 * SECOND
IDLE, IDLE_NS = 0.3, 600 * SECOND
STEPS = 4  # from the minimum to the maximum


class Autoscale:
    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.rate = minimum
        self._step = max(1, (maximum - minimum) // STEPS)
        self._busy_since_ns: int | None = None
        self._idle_since_ns: int | None = None

    def hear(self, now_ns: int, utilisation: float) -> int:
        """How much of the present rate was used of late, 0 to 1; the rate from now on."""
        self._busy_since_ns = (self._busy_since_ns or now_ns) if utilisation > BUSY else None
        self._idle_since_ns = (self._idle_since_ns or now_ns) if utilisation < IDLE else None
        if self._busy_since_ns is not None and now_ns - self._busy_since_ns >= BUSY_NS:
            self.rate = min(self.maximum, self.rate + self._step)
            self._busy_since_ns = now_ns
        elif self._idle_since_ns is not None and now_ns - self._idle_since_ns >= IDLE_NS:
            self.rate = max(self.minimum, self.rate - self._step)
            self._idle_since_ns = now_ns
        return self.rate
