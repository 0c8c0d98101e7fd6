"""A token bucket with debt: how many bits may pass, as arithmetic.

Pure; the clock is an argument (monotonic ns).  The level is an integer in *nanobits* (1e-9 bit), so
that rate x elapsed is exact: a late or an early look at the clock changes nothing in the long run.

Who was granted n bits has them; who must pass without being granted puts the bucket into debt, which
is repaid before anything else is granted.
"""

from __future__ import annotations

NANO = 1_000_000_000
LEAST_DEPTH = 8 * 65536  # bits
MOST_DEPTH = 8 * 1048576
DEPTH_NS = 50_000_000  # of the rate


def depth(rate: int) -> int:
    """Bits that may pass at once after a pause, for a rate in bit/s."""
    return min(MOST_DEPTH, max(LEAST_DEPTH, rate * DEPTH_NS // NANO))


class TokenBucket:
    """`rate` in bit/s; `level` in nanobits, negative while in debt; `stamp` is when it was right."""

    __slots__ = ("level", "rate", "stamp")

    def __init__(self, rate: int, level: int, stamp: int) -> None:
        self.rate = rate
        self.level = level
        self.stamp = stamp

    @classmethod
    def full(cls, rate: int, now: int) -> TokenBucket:
        return cls(rate, depth(rate) * NANO, now)

    def refill(self, now: int) -> None:
        if now > self.stamp:
            self.level = min(self.level + self.rate * (now - self.stamp), depth(self.rate) * NANO)
            self.stamp = now

    def set_rate(self, now: int, rate: int) -> None:
        """From now on. The level stays what it is in bits, so neither a raise nor a cut makes a burst."""
        self.refill(now)
        self.rate = rate
        self.level = min(self.level, depth(rate) * NANO)

    def take(self, now: int, wanted: int) -> int:
        """So many of the `wanted` bits as there are; 0 while in debt."""
        self.refill(now)
        granted = max(0, min(wanted, self.level // NANO))
        self.level -= granted * NANO
        return granted

    def give(self, bits: int) -> None:
        """Back what was not used, or, below zero, into debt for what passed ungranted."""
        self.level = min(self.level + bits * NANO, depth(self.rate) * NANO)

    def debt(self, now: int) -> int:
        """Bits that are to be repaid before anything is granted."""
        self.refill(now)
        return max(0, -(self.level // NANO))

    def delay_ns(self, now: int, bits: int) -> int:
        """Until `bits` can be taken at once (at most the depth); 0 if now."""
        self.refill(now)
        lacking = min(bits, depth(self.rate)) * NANO - self.level
        return max(0, -(-lacking // self.rate)) if self.rate else 0
