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
    """`rate` in bit/s; `level` in nanobits, negative while in debt; `stamp_ns` is when it was right."""

    __slots__ = ("level", "rate", "stamp_ns")

    def __init__(self, rate: int, level: int, stamp_ns: int) -> None:
        self.rate = rate
        self.level = level
        self.stamp_ns = stamp_ns

    @classmethod
    def full(cls, rate: int, now_ns: int) -> TokenBucket:
        return cls(rate, depth(rate) * NANO, now_ns)

    def refill(self, now_ns: int) -> None:
        if now_ns > self.stamp_ns:
            self.level = min(self.level + self.rate * (now_ns - self.stamp_ns), depth(self.rate) * NANO)
            self.stamp_ns = now_ns

    def set_rate(self, now_ns: int, rate: int) -> None:
        """From now on. The level stays what it is in bits, so neither a raise nor a cut makes a burst."""
        self.refill(now_ns)
        self.rate = rate
        self.level = min(self.level, depth(rate) * NANO)

    def take(self, now_ns: int, wanted: int) -> int:
        """So many of the `wanted` bits as there are; 0 while in debt."""
        self.refill(now_ns)
        granted = max(0, min(wanted, self.level // NANO))
        self.level -= granted * NANO
        return granted

    def give(self, bits: int) -> None:
        """Back what was not used, or, below zero, into debt for what passed ungranted."""
        self.level = min(self.level + bits * NANO, depth(self.rate) * NANO)

    def debt(self, now_ns: int) -> int:
        """Bits that are to be repaid before anything is granted."""
        self.refill(now_ns)
        return max(0, -(self.level // NANO))

    def delay_ns(self, now_ns: int, bits: int) -> int:
        """Until `bits` can be taken at once (at most the depth); 0 if now."""
        self.refill(now_ns)
        lacking = min(bits, depth(self.rate)) * NANO - self.level
        return max(0, -(-lacking // self.rate)) if self.rate else 0
