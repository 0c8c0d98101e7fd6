"""One front's slots: which are free, the generation of each, and which hold pages to give back.

Touches the shared memory.  Knows neither requests nor pipes: `Dispatch` hands requests in.

    free        may be taken
    taken       a request's body arrives, waits or is answered there, or its answer is being sent
    abandoned   taken by a front that was killed; a replica may still hold the request

A slot's *generation* counts its requests.  Descriptors and completions carry it, and a record of
another generation than the slot's present one is dropped: so no late answer reaches another caller.
Zero is the generation of a slot that was never used.
"""

from __future__ import annotations

import mmap
from time import monotonic_ns

from twofold.server.replica import slots
from twofold.server.replica.slots import SLOTS_OFFSET

LARGE_BYTES = 65536  # a slot that held more than this gives its pages back when it idles
LARGE_IDLE_NS = 1_000_000_000
LARGE_PER_TICK = 4  # giving back 10 MB takes 1.5 ms of the loop's time
ABANDONED_NS = 2_000_000_000  # past its deadline; a replica that still holds it was killed before
GENERATION_MASK = 0xFFFFFFFF
BODIES_OFFSET = SLOTS_OFFSET + slots.SLOT_HEADER_SIZE


def next_generation(generation: int) -> int:
    """The generation after this one; 32 bits, and never zero."""
    return generation + 1 & GENERATION_MASK or 1


class SlotTable:
    """The slots of front number `front`. `free`, `generations` and the offsets are read on the hot path."""

    def __init__(self, memory: mmap.mmap, layout: slots.Layout, front: int) -> None:
        self.memory = memory
        self.view = memoryview(memory)
        self.layout = layout
        self.stride = layout.stride
        self.answers_offset = SLOTS_OFFSET + layout.answer_offset
        first = front * layout.slots_per_front
        self._numbers = range(first, first + layout.slots_per_front)
        self.generations = dict.fromkeys(self._numbers, 1)
        self.free: list[int] = []
        self.abandoned: dict[int, int] = {}  # slot -> ns (monotonic) from which no replica can hold it
        self.large: dict[int, int] = {}  # free or taken again -> ns (monotonic) of its last release
        self._adopt()

    def _adopt(self) -> None:
        """Take over the slots as a killed predecessor left them, some perhaps still held by replicas."""
        now_ns = monotonic_ns()
        for slot in self._numbers:
            header = slots.SLOT_HEADER.unpack_from(self.memory, self.layout.slot(slot))
            generation, state, _, _, deadline_ns, _ = header
            if not generation:
                self.free.append(slot)
                continue
            safe_ns = deadline_ns + ABANDONED_NS
            if state == slots.DONE or safe_ns < now_ns:
                self.generations[slot] = next_generation(generation)
                self.free.append(slot)
            else:
                # A replica skips a cancelled request, or is killed for holding it past its deadline.
                self.generations[slot] = generation
                self.set_state(slot, slots.CANCELLED)
                self.abandoned[slot] = safe_ns
        self.free.reverse()  # LIFO: the same few slots stay warm

    @property
    def unavailable(self) -> bool:
        """No replica is ready, and none is about to be."""
        return bool(self.memory[slots.UNAVAILABLE])

    @property
    def in_use(self) -> int:
        """Slots that are taken or abandoned; those whose body still arrives or answer still leaves count."""
        return self.layout.slots_per_front - len(self.free)

    def admits(self) -> bool:
        """Whether take() would give a slot."""
        return bool(self.free) and not self.unavailable

    def take(self) -> int | None:
        """A free slot; None if all are taken, or no replica can serve."""
        if not self.free or self.memory[slots.UNAVAILABLE]:
            return None
        return self.free.pop()

    def take_large(self) -> int | None:
        """A slot for a body that takes long to arrive, or None: a quarter of the slots is kept from those."""
        return self.take() if len(self.free) > self.layout.slots_per_front // 4 else None

    def release(self, slot: int, touched: int = 0) -> None:
        """The slot is free; `touched` bytes of its body or its answer were used."""
        self.free.append(slot)
        if touched > LARGE_BYTES:
            self.large[slot] = monotonic_ns()

    def body(self, slot: int, size: int) -> memoryview:
        """Where the body of `size` bytes belongs."""
        start = BODIES_OFFSET + slot * self.stride
        return self.view[start : start + size]

    def answer(self, slot: int, size: int) -> memoryview:
        """The answer of `size` bytes; valid until release()."""
        start = self.answers_offset + slot * self.stride
        return self.view[start : start + size]

    def set_state(self, slot: int, state: int) -> None:
        """WAITING or CANCELLED, for the replica that takes the request (see replica/slots.py)."""
        self.memory[self.layout.slot(slot) + slots.STATE_OFFSET] = state

    def tick(self, now_ns: int) -> None:
        """Free abandoned slots that no replica can hold any more, and give back pages of idle large ones."""
        for slot in [slot for slot, safe_ns in self.abandoned.items() if safe_ns < now_ns]:
            del self.abandoned[slot]
            self.generations[slot] = next_generation(self.generations[slot])
            self.release(slot, LARGE_BYTES + 1)
        if self.large:
            self._give_back(now_ns)

    def _give_back(self, now_ns: int) -> None:
        """Punch the used pages out of large slots that have idled; the first page stays warm."""
        idle = set(self.free)
        until_ns = now_ns - LARGE_IDLE_NS
        ripe = [slot for slot, since_ns in self.large.items() if since_ns < until_ns and slot in idle]
        for slot in ripe[:LARGE_PER_TICK]:
            del self.large[slot]
            start = self.layout.slot(slot) + slots.PAGE
            self.memory.madvise(mmap.MADV_REMOVE, start, self.layout.stride - slots.PAGE)
