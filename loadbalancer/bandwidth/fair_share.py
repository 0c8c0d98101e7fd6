"""Whose turn it is among proxies that have flows waiting for the one bucket.

Touches this proxy's words behind the bucket's in the shared memory, and reads those of the others;
one writer each, no lock.  By itself the bucket belongs to whoever looks first, so that a flow would
fare better on a proxy with few of them.  Here each proxy counts what its flows have had, per flow,
and one that is ahead leaves the bucket to those behind it (Goyal and others, start-time fair
queueing, 1996).  Who has nothing waiting takes no turns, and does not wait for any.

Words of a proxy that has not been heard of for FRESH_NS are those of a dead one.  A flow whose piece
has just passed will be back in a moment: its place is kept for LINGER_NS.
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
    """One proxy's place; without a `number` it is alone.

    `elsewhere`: bytes that wait at the others; `flows`: how many flows they belong to.
    """

    __slots__ = ("_flows", "_left_ns", "_mine", "_rivals", "_table", "elsewhere", "flows")

    def __init__(self, shared: mmap.mmap, number: int | None) -> None:
        self._table: memoryview | None = None
        self._mine = 0
        self._flows = 0
        self._left_ns = 0  # when the last flow stopped waiting, if its place is kept
        self._rivals: list[int] = []  # where the words of others begin that have flows waiting
        self.elsewhere = self.flows = 0
        if number is not None:
            end = _SLOTS_OFFSET + shared_memory.MAX_PROXIES * _WORDS * 8
            self._table = memoryview(shared)[_SLOTS_OFFSET:end].cast("q")
            self._mine = number * _WORDS

    def close(self) -> None:
        """Let go of the mapping, which could not be closed otherwise."""
        if self._table is not None:
            self._table.release()
            self._table = None

    def publish(self, now_ns: int, flows: int, queued: int) -> None:
        """So many flows wait here, with so many bytes; hear about the others."""
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
            # Neither credit nor debt from earlier days: it joins as one of those that are furthest behind.
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
        """Out of the bucket, or, below zero, back into it."""
        if self._table is not None and self._flows:
            self._table[self._mine + _HAD] += bits // self._flows

    def waits(self, now_ns: int, bits: int) -> bool:
        """Whether flows elsewhere come before the next one here, which wants `bits`."""
        table = self._table
        if table is None or not self._rivals or not self._flows:
            return False
        behind = [
            table[start + _HAD]
            for start in self._rivals
            if table[start + _FLOWS] and now_ns - table[start + _STAMP] < FRESH_NS
        ]
        return bool(behind) and table[self._mine + _HAD] > min(behind) + bits
