"""The token bucket that all proxies share, and each proxy's lease of tokens.

Touches the bucket's words in the shared memory, under a file lock on their bytes that the kernel releases
when its holder dies.  To avoid the lock per message, a proxy takes a *lease* of the tokens of LEASE_NS, and
spends from it.  The rest of a lease is returned at the next tick, so a proxy that is killed loses at most one
lease.

    if not waiting and lease.spend(nbytes): go    0.15 us from the lease, 5 us with a new one
    else: queue.add(Ticket(nbytes, go, now_ns))   and set a timer to lease.delay_ns(queue.next_size)
    when the timer fires:
        for ticket in queue.serve(lease.spend): ticket.go()
        if queue.queued: set the timer again
    at every tick of 20 ms, and when the queue becomes empty:
        lease.settle(len(queue), queue.queued)    return the lease, read the current rate
    lease.owe(nbytes)                             pay for bytes that cannot wait, into debt

`BandwidthLimiter` follows this protocol.  A proxy with waiting messages keeps its lease from tick to tick, to
save for the next message.  Several proxies with waiting flows share the bucket by fair_share.py.
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
    """Bits on the wire: payload plus Ethernet, IP and TCP headers of full segments."""
    return (nbytes + OVERHEAD * -(-nbytes // SEGMENT)) << 3


class SharedBucket:
    """The bucket in shared memory. `fd` must stay open: closing any of its descriptors drops the lock."""

    def __init__(self, shared: mmap.mmap, fd: int, clock: Callable[[], int] = monotonic_ns) -> None:
        self.shared = shared
        self._fd = fd
        self.clock = clock

    @contextmanager
    def open(self) -> Iterator[TokenBucket]:
        """The bucket under its lock; changes are written back at the end."""
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
        """Return `back` bits (negative: into debt), take up to `wanted` bits; (bucket, bits taken).

        Equivalent to give() and take() within open(), at half the cost.
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
        """Bit/s; 0 is unlimited. Read without the lock, because it is one aligned word."""
        return int(_WORDS.unpack_from(self.shared, shared_memory.BUCKET_OFFSET)[0])

    def set_rate(self, rate: int) -> None:
        """Set the rate in bit/s; every proxy applies it at its next lease or tick."""
        now_ns = self.clock()
        with self.open() as bucket:
            if bucket.stamp_ns:
                bucket.set_rate(now_ns, rate)
            else:
                fresh = TokenBucket.full(rate, now_ns)
                bucket.rate, bucket.level, bucket.stamp_ns = fresh.rate, fresh.level, fresh.stamp_ns


class Lease:
    """One proxy's lease. `allowance`: the bits left of it, negative while in debt.

    `number`: the proxy's number; without one, it does not share with other proxies.
    """

    __slots__ = ("_bits", "_bucket", "_exchanged_ns", "_level", "allowance", "debt", "rate", "share")

    def __init__(
        self, bucket: SharedBucket, bits: Callable[[int], int] = http_bits, number: int | None = None
    ) -> None:
        self._bucket = bucket
        self._bits = None if bits is http_bits else bits  # None: http_bits, inlined to avoid the call
        self.share = FairShare(bucket.shared, number)
        self.allowance = 0
        self.rate = bucket.rate
        self.debt = 0  # bits of debt of the bucket at the last exchange
        self._level = 0  # nanobits in the bucket at the last exchange
        self._exchanged_ns = bucket.clock()

    def spend(self, nbytes: int) -> bool:
        """Pay for `nbytes` if the lease or a new one covers them; True if paid."""
        bits = nbytes << 3 if self._bits is None else self._bits(nbytes)
        if self.allowance < bits and not self._renew(bits):
            return False
        self.allowance -= bits
        return True

    def lend(self) -> int:
        """Lend the whole lease in bytes, to be spent by subtraction; 0 with wire accounting."""
        lent = self.allowance >> 3 if self._bits is None and self.allowance > 0 else 0
        self.allowance -= lent << 3
        return lent

    def take_back(self, nbytes: int) -> None:
        """Return the unspent part of lent bytes."""
        self.allowance += nbytes << 3 if self._bits is None else 0

    def owe(self, nbytes: int) -> None:
        """Pay for `nbytes` unconditionally, into debt if necessary."""
        self.allowance -= nbytes << 3 if self._bits is None else self._bits(nbytes)

    def delay_ns(self, nbytes: int) -> int:
        """Nanoseconds until `nbytes` can be paid, estimated from the last exchange without the lock."""
        if not self.rate:
            return 0
        bits = nbytes << 3 if self._bits is None else self._bits(nbytes)
        lacking = (min(bits, depth(self.rate)) - self.allowance) * NANO - self._level
        now_ns = self._bucket.clock()
        if self.share.waits(now_ns, bits):  # until the other proxies have been served
            lacking = max(lacking, bits * NANO)
        return max(0, -(-lacking // self.rate) - (now_ns - self._exchanged_ns))

    def settle(self, flows: int = 0, queued: int = 0) -> None:
        """Return the lease, unless flows wait for which it is saved; repay debt; read the rate.

        `flows`: the number of waiting flows; `queued`: their bytes.
        """
        now_ns = self._bucket.clock()
        self.share.publish(now_ns, flows, queued)
        back = 0 if flows and self.allowance > 0 else self.allowance
        self._exchange(now_ns, back, 0)
        self.allowance -= back

    def _renew(self, bits: int) -> bool:
        """Take a new lease of at least `bits`; True if it covers them."""
        now_ns, wanted = self._bucket.clock(), 0
        if not self.share.waits(now_ns, bits):
            wanted = max(bits, self.rate * LEASE_NS // NANO)
        self.allowance = self._exchange(now_ns, self.allowance, wanted)
        if not self.rate:
            self.allowance = bits  # the limit has been removed
        # A message larger than the bucket's depth passes when the bucket is full, and leaves it in debt.
        return self.allowance >= min(bits, depth(self.rate))

    def _exchange(self, now_ns: int, back: int, wanted: int) -> int:
        bucket, taken = self._bucket.exchange(now_ns, back, wanted)
        self.rate, self._level, self._exchanged_ns = bucket.rate, bucket.level, now_ns
        self.debt = max(0, -(bucket.level // NANO))
        self.share.took(taken - back)
        return taken
