"""Fairness between proxies whose flows wait for the shared bucket (start-time fair queueing, Goyal, 1996).

Touches this proxy's words after the bucket's in the shared memory, and reads the words of other proxies; one
writer each, no lock.  Without it, each proxy would get an equal part of the bucket, however many flows it
has.  Each proxy publishes its service per flow, `had` += bits / flows.  A proxy takes from the bucket only
while its `had` is not ahead of the smallest `had` of the others by more than the bits that it wants.  A proxy
without waiting flows does not take part.

Words older than FRESH_NS are ignored: their proxy is dead or idle.  A flow whose piece has just passed is
likely to wait again soon, so a proxy takes part for LINGER_NS after its last flow.
"""

from __future__ import annotations

import mmap

from twofold.loadbalancer import shared_memory

FRESH_NS = 100_000_000
LINGER_NS = 5_000_000
_SLOTS_OFFSET = shared_memory.BUCKET_OFFSET + 64
_HAD, _FLOWS, _QUEUED, _STAMP = range(4)
_WORDS = 4


class FairShare:
    """One proxy's share; without a `number` there are no other proxies.

    `elsewhere`: bytes that wait at other proxies; `flows`: the number of flows that wait there.
    """

    __slots__ = ("_flows", "_left_ns", "_mine", "_rivals", "_table", "elsewhere", "flows")

    def __init__(self, shared: mmap.mmap, number: int | None) -> None:
        self._table: memoryview | None = None
        self._mine = 0
        self._flows = 0
        self._left_ns = 0  # when the last flow stopped waiting; 0: flows wait, or LINGER_NS is over
        self._rivals: list[int] = []  # start indices of the words of other proxies with waiting flows
        self.elsewhere = self.flows = 0
        if number is not None:
            end = _SLOTS_OFFSET + shared_memory.MAX_PROXIES * _WORDS * 8
            self._table = memoryview(shared)[_SLOTS_OFFSET:end].cast("q")
            self._mine = number * _WORDS

    def close(self) -> None:
        """Release the view, so that the mapping can be closed."""
        if self._table is not None:
            self._table.release()
            self._table = None

    def publish(self, now_ns: int, flows: int, queued: int) -> None:
        """Publish `flows` waiting flows with `queued` bytes; read the words of the other proxies.

        Invariant: a proxy that joins starts at the smallest `had` of the others, so that it brings neither
        credit nor debt from an earlier time.
        """
        table = self._table
        if table is None:
            return
        words = table.tolist()
        self._rivals = [
            start
            for start in range(0, len(words), _WORDS)
            if words[start + _FLOWS] and start != self._mine and now_ns - words[start + _STAMP] < FRESH_NS
        ]
        self.elsewhere = sum(words[start + _QUEUED] for start in self._rivals)
        self.flows = sum(words[start + _FLOWS] for start in self._rivals)
        if flows and not self._flows and self._rivals:
            table[self._mine + _HAD] = min(words[start + _HAD] for start in self._rivals)
        table[self._mine + _QUEUED] = queued
        if flows:
            self._flows, self._left_ns = flows, 0
            table[self._mine + _STAMP], table[self._mine + _FLOWS] = now_ns, flows
        elif self._flows and not self._left_ns:
            self._left_ns = now_ns
            table[self._mine + _STAMP] = now_ns - FRESH_NS + LINGER_NS
        elif now_ns - self._left_ns >= LINGER_NS:
            self._flows = table[self._mine + _FLOWS] = 0

    def took(self, bits: int) -> None:
        """Count `bits` taken from the bucket, or returned to it if negative."""
        if self._table is not None and self._flows:
            self._table[self._mine + _HAD] += bits // self._flows

    def waits(self, now_ns: int, bits: int) -> bool:
        """Whether flows of another proxy go first: had > min(had of the others) + `bits`."""
        table = self._table
        if table is None or not self._rivals or not self._flows:
            return False
        behind = [
            table[start + _HAD]
            for start in self._rivals
            if table[start + _FLOWS] and now_ns - table[start + _STAMP] < FRESH_NS
        ]
        return bool(behind) and table[self._mine + _HAD] > min(behind) + bits
