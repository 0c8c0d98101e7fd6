"""Scales the bandwidth between a minimum and a maximum, by its utilisation.

Pure; the clock is an argument (monotonic ns).  Rates are in bit/s.  The rate is raised by one of STEPS steps
after BUSY_NS above the utilisation BUSY, and lowered by one after IDLE_NS below IDLE.
"""

from __future__ import annotations

SECOND_NS = 1_000_000_000
BUSY, BUSY_NS = 0.8, 60 * SECOND_NS
IDLE, IDLE_NS = 0.3, 600 * SECOND_NS
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
        """Record the current utilisation, 0 to 1; return the rate to apply, in bit/s."""
        self._busy_since_ns = (self._busy_since_ns or now_ns) if utilisation > BUSY else None
        self._idle_since_ns = (self._idle_since_ns or now_ns) if utilisation < IDLE else None
        if self._busy_since_ns is not None and now_ns - self._busy_since_ns >= BUSY_NS:
            self.rate = min(self.maximum, self.rate + self._step)
            self._busy_since_ns = now_ns
        elif self._idle_since_ns is not None and now_ns - self._idle_since_ns >= IDLE_NS:
            self.rate = max(self.minimum, self.rate - self._step)
            self._idle_since_ns = now_ns
        return self.rate
