"""One front's slots, from the hand-in of a request to its answer.

Touches the shared memory, the request queue and this front's completion pipe; knows nothing of
HTTP.  Whoever hands in a request is a `Caller` and hears of it exactly once.

    take() -> slot           fill its body, then
    submit(caller, slot)     descriptor into the outbox; one write per loop turn
    ... a replica works ...
    caller.answered(answer)  then release(slot), as soon as the answer is copied or sent

A slot is reused only after its completion (or news of its replica's death) has come back, even
when its caller was answered at the deadline or has left: until then some replica may still write
into it.  At that word the slot's life number rises, so that records of the old life fall on deaf ears.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import sys
import termios
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Protocol

from twofold.server.replica import frame, slots
from twofold.server.replica.slots import SLOTS_OFFSET

# Outcomes that only the front itself reports; they follow those of server.replica.frame.
EXPIRED = 32  # the deadline passed before an answer came
QUARANTINED = 33  # this body killed replicas a moment ago

READ_SIZE = 2048 * frame.COMPLETION_SIZE
WRITE_SIZE = 4096 // frame.DESCRIPTOR_SIZE  # descriptors in one atomic write
FAT = 65536  # a slot that held more than this gives its pages back when it idles
FAT_IDLE_NS = 1_000_000_000
FAT_PER_TICK = 4  # handing back 10 MB takes 1.5 ms of the loop's time
ORPHAN_NS = 2_000_000_000  # a replica that holds a request past its deadline is dead by then
LIFE_MASK = 0xFFFFFFFF
BODIES_OFFSET = SLOTS_OFFSET + slots.SLOT_HEADER_SIZE

_pack_header = slots.SLOT_HEADER_AND_ID.pack_into
_pack_descriptor = frame.DESCRIPTOR.pack
_unpack = frame.COMPLETION.iter_unpack


def _not_started(callback: Callable[[], None]) -> None:
    raise RuntimeError("Dispatch.start() comes first")


class Caller(Protocol):
    """Whoever waits for an answer."""

    def answered(
        self, slot: int, size: int, outcome: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """The outcome, once. With EXPIRED, REFUSED, QUARANTINED the slot is not the caller's any more."""


@dataclass(frozen=True, slots=True)
class QueuePipes:
    """The inherited fds of one front."""

    queue: int
    completions: int


class Dispatch:
    def __init__(
        self, memory: mmap.mmap, layout: slots.Layout, front: int, lanes: QueuePipes, timeout: float
    ) -> None:
        self.memory = memory
        self.view = memoryview(memory)
        self.layout = layout
        self.lanes = lanes
        self.timeout_ns = int(timeout * 1e9)
        self.first = front * layout.slots_per_front
        self.pending: dict[int, Caller] = {}  # in the order of hand-in, hence of deadlines
        self.outbox: list[bytes] = []
        self.fat: dict[int, int] = {}
        self.completed = 0
        self.replayed = 0
        self.rate = 0.0  # completions per second, smoothed
        self._rated = (time.monotonic(), 0)
        self.stride = layout.stride
        self.answers_offset = SLOTS_OFFSET + layout.answer_offset
        self._call_soon: Callable[[Callable[[], None]], object] = _not_started
        self.now_ns = time.monotonic_ns()  # as of the last answers or the last tick
        self._adopt()

    def _adopt(self) -> None:
        """Take over the slots, some of which a killed predecessor may have left in a replica's hands."""
        numbers = range(self.first, self.first + self.layout.slots_per_front)
        self.lives = dict.fromkeys(numbers, 1)
        self.free: list[int] = []
        self.orphans: dict[int, int] = {}  # slot -> when nobody can hold it any more
        now = time.monotonic_ns()
        for slot in numbers:
            life, state, _, _, deadline, _ = slots.SLOT_HEADER.unpack_from(
                self.memory, self.layout.slot(slot)
            )
            if not life:
                self.free.append(slot)
                continue
            self.lives[slot] = life + 1 & LIFE_MASK or 1
            if state == slots.DONE or deadline + ORPHAN_NS < now:
                self.free.append(slot)
            else:
                # Past its deadline a replica skips it or is killed for holding it.
                self.lives[slot] = life
                self.memory[self.layout.slot(slot) + slots.STATE_OFFSET] = slots.CANCELLED
                self.orphans[slot] = deadline + ORPHAN_NS
        self.free.reverse()  # LIFO: the same few slots stay warm

    def start(self, loop: AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        loop.add_reader(self.lanes.completions, self.drain)

    @property
    def depth(self) -> int:
        """Requests handed in and not yet answered."""
        return len(self.pending)

    def queued(self) -> int:
        """Requests that no replica has taken yet."""
        waiting = bytearray(4)
        fcntl.ioctl(self.lanes.queue, termios.FIONREAD, waiting)
        return int.from_bytes(waiting, sys.byteorder) // frame.DESCRIPTOR_SIZE

    def take(self) -> int | None:
        """A free slot, or None: the queue is full or nobody can serve it."""
        if not self.free or self.memory[slots.UNAVAILABLE]:
            return None
        return self.free.pop()

    def take_large(self) -> int | None:
        """A slot for a body that will take a while to arrive: a quarter of them is not for those."""
        return self.take() if len(self.free) > self.layout.slots_per_front // 4 else None

    @property
    def unavailable(self) -> bool:
        """No replica is ready, and none is about to be."""
        return bool(self.memory[slots.UNAVAILABLE])

    def admits(self) -> bool:
        return bool(self.free) and not self.unavailable

    def body(self, slot: int, size: int) -> memoryview:
        """Where the body of `size` bytes belongs."""
        start = BODIES_OFFSET + slot * self.stride
        return self.view[start : start + size]

    def answer(self, slot: int, size: int) -> memoryview:
        """The answer of `size` bytes; valid until release()."""
        start = self.answers_offset + slot * self.stride
        return self.view[start : start + size]

    def submit(self, caller: Caller, slot: int, size: int, kind: int, request_id: bytes) -> int:
        """Hand in the body that lies in `slot`; the time of it (monotonic ns)."""
        memory = self.memory
        now = monotonic_ns()
        if memory[slots.QUARANTINED] and self._quarantined(self.body(slot, size), now):
            self.release(slot)
            self.now_ns = now
            self._call_soon(partial(caller.answered, slot, 0, QUARANTINED, 0, 0, 0))
            return now
        life = self.lives[slot]
        _pack_header(
            memory, SLOTS_OFFSET + slot * self.stride,
            life, slots.WAITING, len(request_id), 0, now + self.timeout_ns, now, request_id,
        )  # fmt: skip
        self.pending[slot] = caller
        if not self.outbox:
            self._call_soon(self.flush)
        self.outbox.append(_pack_descriptor(slot, life, size, kind, 0, 0))
        return now

    def flush(self) -> None:
        """Write the descriptors of this loop turn. The pipe is larger than all slots together."""
        outbox, self.outbox = self.outbox, []
        for start in range(0, len(outbox), WRITE_SIZE):
            os.write(self.lanes.queue, b"".join(outbox[start : start + WRITE_SIZE]))

    def cancel(self, caller: Caller, slot: int) -> None:
        """The caller has left. A replica that has not started the request skips it."""
        self.now_ns = monotonic_ns()
        if self.pending.get(slot) is caller:
            del self.pending[slot]
            self.memory[self.layout.slot(slot) + slots.STATE_OFFSET] = slots.CANCELLED

    def release(self, slot: int, touched: int = 0) -> None:
        """The slot is free; `touched` bytes of it were used."""
        self.free.append(slot)
        if touched > FAT:
            self.fat[slot] = self.now_ns

    def drain(self) -> None:
        """Read what the replicas have finished, many answers at once."""
        lives, pending = self.lives, self.pending
        completions = os.read(self.lanes.completions, READ_SIZE)
        self.now_ns = monotonic_ns()
        for slot, life, size, outcome, attempt, _, queued, predicted, encoded, _ in _unpack(completions):
            if lives.get(slot) != life:
                continue
            self.completed += 1
            if outcome == frame.RETRY and slot in pending:
                self._retry(slot, size, queued, attempt)
                continue
            # This life is over, though its caller may keep the slot for a while: a replica that dies
            # before it clears its mailbox is reported with a request that it has completed.
            lives[slot] = life + 1 & LIFE_MASK or 1
            caller = pending.pop(slot, None)
            if caller is None or outcome >= frame.RETRY or outcome == frame.SKIPPED:
                self.orphans.pop(slot, None)
                self.release(slot, FAT + 1)
                if caller is not None:
                    caller.answered(slot, 0, EXPIRED if outcome == frame.SKIPPED else outcome, queued, 0, 0)
            else:
                caller.answered(slot, size, outcome, queued, predicted, encoded)

    def _retry(self, slot: int, size: int, kind: int, attempt: int) -> None:
        """Its replica died with it in hand: the body still lies in the slot, so offer it once more."""
        self.replayed += 1
        self.memory[self.layout.slot(slot) + slots.STATE_OFFSET] = slots.WAITING
        if not self.outbox:
            self._call_soon(self.flush)
        self.outbox.append(frame.DESCRIPTOR.pack(slot, self.lives[slot], size, kind, attempt, 0))

    def tick(self) -> None:
        """Every 50 ms or so: deadlines, orphans, the completion rate, idle memory."""
        now = self.now_ns = monotonic_ns()
        while self.pending:
            slot = next(iter(self.pending))
            _, _, _, _, deadline, handed_in = slots.SLOT_HEADER.unpack_from(
                self.memory, self.layout.slot(slot)
            )
            if deadline > now:
                break
            caller = self.pending.pop(slot)
            self.memory[self.layout.slot(slot) + slots.STATE_OFFSET] = slots.CANCELLED
            caller.answered(slot, 0, EXPIRED, (now - handed_in) // 1000, 0, 0)
        for slot in [slot for slot, safe in self.orphans.items() if safe < now]:
            del self.orphans[slot]
            self.lives[slot] = self.lives[slot] + 1 & LIFE_MASK or 1
            self.release(slot, FAT + 1)
        self._rate(now / 1e9)
        if self.fat:
            self._give_back(now)

    def _rate(self, now: float) -> None:
        since, count = self._rated
        if now - since >= 0.5:
            recent = (self.completed - count) / (now - since)
            self.rate = recent if not self.rate else 0.5 * (self.rate + recent)
            self._rated = (now, self.completed)

    def retry_after(self) -> int:
        """Seconds until the present queue will have drained, from the measured rate."""
        if self.rate <= 0:
            return 1
        return max(1, min(60, round(len(self.pending) / self.rate + 0.5)))

    def _give_back(self, now: int) -> None:
        """Punch the used pages out of large slots that have idled; the first page stays warm."""
        idle = set(self.free)
        ripe = [slot for slot, since in self.fat.items() if now - since > FAT_IDLE_NS and slot in idle]
        for slot in ripe[:FAT_PER_TICK]:
            del self.fat[slot]
            start = self.layout.slot(slot) + slots.PAGE
            self.memory.madvise(mmap.MADV_REMOVE, start, self.layout.stride - slots.PAGE)

    def _quarantined(self, body: memoryview, now: int) -> bool:
        digest = hashlib.blake2b(body, digest_size=slots.DIGEST_SIZE).digest()
        for cell in range(slots.QUARANTINE_CELLS):
            offset = slots.QUARANTINE_OFFSET + cell * slots.QUARANTINE_CELL.size
            known, expiry, _ = slots.QUARANTINE_CELL.unpack_from(self.memory, offset)
            if expiry > now and known == digest:
                return True
        return False
