"""The one bucket of all proxies, and each proxy's account of it.

Touches the bucket's words in the shared memory, under a lock on their bytes that the kernel frees
when its holder dies.  A proxy does not go there for each message: it takes a *lease*, at most what
the rate gives in LEASE_NS, and spends from that.  Whatever is left of a lease goes back at the next
tick, so a proxy that is killed takes no more than one lease with it.

    if not waiting and lease.spend(nbytes): go    0.15 us from the lease, 5 us for a new one
    else: queue.add(Ticket(nbytes, go, now))      and a timer, lease.delay_ns(queue.next_size) from now
    when the timer fires:
        for ticket in queue.serve(lease.spend): ticket.go()
        if queue.queued: set the timer again
    at every tick of 20 ms, and when nobody waits any more:
        lease.settle(len(queue), queue.queued)  gives back the lease, learns the rate of now
    lease.owe(nbytes)                             what must pass is passed, into debt

That is what a limiter does.  A proxy whose messages wait keeps its lease from tick to tick: it is
saving for the next of them.  While several proxies have flows that wait, each takes its turn (shares).
"""

from __future__ import annotations

import fcntl
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic_ns

from twofold.loadbalancer import shared_memory
from twofold.loadbalancer.bandwidth.fair_share import FairShare
from twofold.loadbalancer.bandwidth.token_bucket import NANO, TokenBucket, depth

LEASE_NS = 5_000_000
SEGMENT = 1448  # bytes of payload in a TCP segment of an Ethernet with timestamps
OVERHEAD = 66  # bytes of such a segment that are not payload
_WORDS = struct.Struct("<qqq")  # rate, level, stamp


def http_bits(nbytes: int) -> int:
    return nbytes << 3


def wire_bits(nbytes: int) -> int:
    """With Ethernet, IP and TCP headers of full segments."""
    return (nbytes + OVERHEAD * -(-nbytes // SEGMENT)) << 3


class SharedBucket:
    """The shared bucket. `fd` must stay open: closing any of its descriptors would drop the lock."""

    def __init__(self, shared: mmap.mmap, fd: int, clock: Callable[[], int] = monotonic_ns) -> None:
        self.shared = shared
        self._fd = fd
        self.clock = clock

    @contextmanager
    def open(self) -> Iterator[TokenBucket]:
        """The bucket, locked; what is changed is written back."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _WORDS.size, shared_memory.BUCKET_OFFSET)
        try:
            bucket = TokenBucket(*_WORDS.unpack_from(self.shared, shared_memory.BUCKET_OFFSET))
            yield bucket
            _WORDS.pack_into(
                self.shared, shared_memory.BUCKET_OFFSET, bucket.rate, bucket.level, bucket.stamp_ns
            )
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _WORDS.size, shared_memory.BUCKET_OFFSET)

    def exchange(self, now_ns: int, back: int, wanted: int) -> tuple[TokenBucket, int]:
        """Give `back` bits (below zero: into debt), take up to `wanted`; the bucket then, and the bits.

        The same as with open(), at half the cost.
        """
        fcntl.lockf(self._fd, fcntl.LOCK_EX, _WORDS.size, shared_memory.BUCKET_OFFSET)
        try:
            bucket = TokenBucket(*_WORDS.unpack_from(self.shared, shared_memory.BUCKET_OFFSET))
            bucket.refill(now_ns)
            bucket.give(back)
            taken = bucket.take(now_ns, wanted) if wanted else 0
            _WORDS.pack_into(
                self.shared, shared_memory.BUCKET_OFFSET, bucket.rate, bucket.level, bucket.stamp_ns
            )
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, _WORDS.size, shared_memory.BUCKET_OFFSET)
        return bucket, taken

    @property
    def rate(self) -> int:
        """Bit/s; 0 is unlimited. One aligned word: no lock."""
        return int(_WORDS.unpack_from(self.shared, shared_memory.BUCKET_OFFSET)[0])

    def set_rate(self, rate: int) -> None:
        """Live: every proxy uses it at its next lease or tick."""
        now_ns = self.clock()
        with self.open() as bucket:
            if bucket.stamp_ns:
                bucket.set_rate(now_ns, rate)
            else:
                fresh = TokenBucket.full(rate, now_ns)
                bucket.rate, bucket.level, bucket.stamp_ns = fresh.rate, fresh.level, fresh.stamp_ns


class Lease:
    """One proxy's account. `allowance` is what is left of the lease, in bits, below zero if it owes.

    `number`: which proxy it is; without one, it takes no turns with others.
    """

    __slots__ = ("_bits", "_bucket", "_level", "_looked_ns", "allowance", "debt", "rate", "share")

    def __init__(
        self, bucket: SharedBucket, bits: Callable[[int], int] = http_bits, number: int | None = None
    ) -> None:
        self._bucket = bucket
        self._bits = None if bits is http_bits else bits  # the usual one is spelt out: calls cost
        self.share = FairShare(bucket.shared, number)
        self.allowance = 0
        self.rate = bucket.rate
        self.debt = 0  # of the bucket, in bits, as of the last visit
        self._level = 0  # likewise, in nanobits
        self._looked_ns = bucket.clock()

    def spend(self, nbytes: int) -> bool:
        """Whether so much may pass now; it is paid for if so."""
        bits = nbytes << 3 if self._bits is None else self._bits(nbytes)
        if self.allowance < bits and not self._renew(bits):
            return False
        self.allowance -= bits
        return True

    def lend(self) -> int:
        """Bytes of the lease, to be spent by subtracting; 0 where a byte has no price of its own."""
        lent = self.allowance >> 3 if self._bits is None and self.allowance > 0 else 0
        self.allowance -= lent << 3
        return lent

    def take_back(self, nbytes: int) -> None:
        """What is left of what was lent."""
        self.allowance += nbytes << 3 if self._bits is None else 0

    def owe(self, nbytes: int) -> None:
        self.allowance -= nbytes << 3 if self._bits is None else self._bits(nbytes)

    def delay_ns(self, nbytes: int) -> int:
        """Until it is worth looking again, as far as the last visit tells: no lock."""
        if not self.rate:
            return 0
        bits = nbytes << 3 if self._bits is None else self._bits(nbytes)
        lacking = (min(bits, depth(self.rate)) - self.allowance) * NANO - self._level
        now_ns = self._bucket.clock()
        if self.share.waits(now_ns, bits):  # until others have taken their turns
            lacking = max(lacking, bits * NANO)
        return max(0, -(-lacking // self.rate) - (now_ns - self._looked_ns))

    def settle(self, flows: int = 0, queued: int = 0) -> None:
        """Give back what was leased, unless it is saved for one of the flows that wait; repay.

        `queued`: bytes of those flows.
        """
        now_ns = self._bucket.clock()
        self.share.publish(now_ns, flows, queued)
        back = 0 if flows and self.allowance > 0 else self.allowance
        self._visit(now_ns, back, 0)
        self.allowance -= back

    def _renew(self, bits: int) -> bool:
        """A new lease, for `bits` at least; whether they may pass."""
        now_ns, wanted = self._bucket.clock(), 0
        if not self.share.waits(now_ns, bits):
            wanted = max(bits, self.rate * LEASE_NS // NANO)
        self.allowance = self._visit(now_ns, self.allowance, wanted)
        if not self.rate:
            self.allowance = bits  # there is no limit any more
        # What is larger than the bucket passes when the bucket is full, and leaves it in debt.
        return self.allowance >= min(bits, depth(self.rate))

    def _visit(self, now_ns: int, back: int, wanted: int) -> int:
        bucket, taken = self._bucket.exchange(now_ns, back, wanted)
        self.rate, self._level, self._looked_ns = bucket.rate, bucket.level, now_ns
        self.debt = max(0, -(bucket.level // NANO))
        self.share.took(taken - back)
        return taken
