"""The one bucket of all proxies, and each proxy's account of it.

Touches the bucket's words in the shared memory, under a lock on their bytes that the kernel frees
when its holder dies.  A proxy does not go there for each message: it takes a *lease*, at most what
the rate gives in LEASE_NS, and spends from that.  Whatever is left of a lease goes back at the next
visit, so a proxy that is killed takes no more than one lease with it.

    if meter.spend(nbytes): go          from the lease, or a new one
    else: look again after meter.delay_ns(nbytes)
    meter.owe(nbytes)                   what must pass is passed, into debt
    meter.settle()                      at every tick: give back, repay, and learn the rate of now
"""

from __future__ import annotations

import fcntl
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic_ns

from loadbalancer import memory
from loadbalancer.bucket import NANO, Bucket, depth

LEASE_NS = 5_000_000
SEGMENT = 1448  # bytes of payload in a TCP segment of an Ethernet with timestamps
OVERHEAD = 66  # bytes of such a segment that are not payload
_WORDS = struct.Struct("<qqq")  # rate, level, stamp


def http_bits(nbytes: int) -> int:
    return nbytes << 3


def wire_bits(nbytes: int) -> int:
    """With Ethernet, IP and TCP headers of full segments."""
    return (nbytes + OVERHEAD * -(-nbytes // SEGMENT)) << 3


class Ledger:
    """The shared bucket. `fd` must stay open: closing any of its descriptors would drop the lock."""

    def __init__(self, shared: mmap.mmap, fd: int, clock: Callable[[], int] = monotonic_ns) -> None:
        self._shared = shared
        self._fd = fd
        self.clock = clock

    @contextmanager
    def open(self) -> Iterator[Bucket]:
        """The bucket, locked; what is changed is written back."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _WORDS.size, memory.BUCKET_OFFSET)
        try:
            bucket = Bucket(*_WORDS.unpack_from(self._shared, memory.BUCKET_OFFSET))
            yield bucket
            _WORDS.pack_into(self._shared, memory.BUCKET_OFFSET, bucket.rate, bucket.level, bucket.stamp)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _WORDS.size, memory.BUCKET_OFFSET)

    @property
    def rate(self) -> int:
        """Bit/s; 0 is unlimited. One aligned word: no lock."""
        return int(_WORDS.unpack_from(self._shared, memory.BUCKET_OFFSET)[0])

    def set_rate(self, rate: int) -> None:
        """Live: every proxy uses it at its next lease or tick."""
        now = self.clock()
        with self.open() as bucket:
            if bucket.stamp:
                bucket.set_rate(now, rate)
            else:
                fresh = Bucket.full(rate, now)
                bucket.rate, bucket.level, bucket.stamp = fresh.rate, fresh.level, fresh.stamp


class Meter:
    """One proxy's account. `allowance` is what is left of the lease, in bits, below zero if it owes."""

    __slots__ = ("_bits", "_ledger", "allowance", "debt", "rate")

    def __init__(self, ledger: Ledger, bits: Callable[[int], int] = http_bits) -> None:
        self._ledger = ledger
        self._bits = bits
        self.allowance = 0
        self.rate = ledger.rate
        self.debt = 0  # of the bucket, in bits, as of the last visit

    def spend(self, nbytes: int) -> bool:
        """Whether so much may pass now; it is paid for if so."""
        bits = self._bits(nbytes)
        if self.allowance < bits:
            self._lease(bits)
            # What is larger than the bucket passes when the bucket is full, and leaves it in debt.
            if self.allowance < min(bits, depth(self.rate)):
                return False
        self.allowance -= bits
        return True

    def owe(self, nbytes: int) -> None:
        self.allowance -= self._bits(nbytes)

    def delay_ns(self, nbytes: int) -> int:
        """Until it is worth looking again."""
        now = self._ledger.clock()
        with self._ledger.open() as bucket:
            return bucket.delay_ns(now, self._bits(nbytes) - self.allowance)

    def settle(self) -> None:
        """Give back what was leased, repay what is owed."""
        self._lease(0)

    def _lease(self, bits: int) -> None:
        now = self._ledger.clock()
        with self._ledger.open() as bucket:
            bucket.refill(now)
            bucket.give(self.allowance)
            self.allowance = 0
            self.rate, self.debt = bucket.rate, bucket.debt(now)
            if bits:
                self.allowance = bucket.take(now, max(bits, bucket.rate * LEASE_NS // NANO))
