"""A token bucket with debt, in bits.

Pure; the clock is an argument (monotonic ns).  The level is an integer in *nanobits* (1e-9 bit), so that
rate x elapsed is exact and no error accumulates, however irregular the calls are.

Bits that are granted are removed at once.  Bits that pass without a grant put the bucket into debt, which is
repaid before the next grant.
"""

from __future__ import annotations

NANO = 1_000_000_000
LEAST_DEPTH = 8 * 65536  # bits
MOST_DEPTH = 8 * 1048576
DEPTH_NS = 50_000_000  # time in which the rate fills the bucket


def depth(rate: int) -> int:
    """The bucket's depth in bits for a rate in bit/s: rate x DEPTH_NS, within LEAST_DEPTH and MOST_DEPTH."""
    return min(MOST_DEPTH, max(LEAST_DEPTH, rate * DEPTH_NS // NANO))


class TokenBucket:
    """`rate` in bit/s; `level` in nanobits at the time `stamp_ns`, negative while in debt."""

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
        """Change the rate. The level in bits is kept, so the change causes no burst."""
        self.refill(now_ns)
        self.rate = rate
        self.level = min(self.level, depth(rate) * NANO)

    def take(self, now_ns: int, wanted: int) -> int:
        """Take up to `wanted` bits; the bits taken, 0 while in debt."""
        self.refill(now_ns)
        granted = max(0, min(wanted, self.level // NANO))
        self.level -= granted * NANO
        return granted

    def give(self, bits: int) -> None:
        """Return unused bits; negative `bits` are a debt for bits that passed without a grant."""
        self.level = min(self.level + bits * NANO, depth(self.rate) * NANO)

    def debt(self, now_ns: int) -> int:
        """Bits that must be repaid before the next grant."""
        self.refill(now_ns)
        return max(0, -(self.level // NANO))

    def delay_ns(self, now_ns: int, bits: int) -> int:
        """Nanoseconds until min(`bits`, depth) can be taken at once."""
        self.refill(now_ns)
        lacking = min(bits, depth(self.rate)) * NANO - self.level
        return max(0, -(-lacking // self.rate)) if self.rate else 0
