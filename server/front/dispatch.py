"""One front's requests, from the hand-in to the answer.

Touches the slots, the request queue and this front's completion pipe; knows nothing of HTTP.

    table.take() -> slot      fill table.body(slot, size), then
    submit(caller, slot, ..)  descriptor into the outbox; one write per loop turn
    ... a replica works ...
    caller.answered(slot, size, outcome, queue_us, predict_us, encode_us)
    table.release(slot)       by the caller, once the answer is copied or sent

A caller that has not left is told of its outcome exactly once.  A slot is reused only after its
completion, or the news of its replica's death, has come back, even when its caller was answered at
the deadline or has left: until then a replica may still write into it.  Then the slot's generation
is incremented, and records of the old generation are ignored.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import sys
import termios
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Protocol

from twofold.server.front.slot_table import GENERATION_MASK, LARGE_BYTES, SlotTable
from twofold.server.replica import frame, slots
from twofold.server.replica.slots import SLOTS_OFFSET

# Outcomes that only the front itself reports; they follow those of server.replica.frame.
EXPIRED = 32  # the deadline passed before an answer came
QUARANTINED = 33  # this body killed two replicas a moment ago

READ_SIZE = 2048 * frame.COMPLETION_SIZE
WRITE_SIZE = 4096 // frame.DESCRIPTOR_SIZE  # descriptors in one atomic write
RATE_NS = 500_000_000  # between two measurements of the completion rate
MAX_RETRY_AFTER_S = 60

_pack_header = slots.SLOT_HEADER_AND_ID.pack_into
_pack_descriptor = frame.DESCRIPTOR.pack
_unpack = frame.COMPLETION.iter_unpack


def _not_started(callback: Callable[[], None]) -> None:
    raise RuntimeError("Dispatch.start() comes first")


class Caller(Protocol):
    """One request's side that takes the answer."""

    def answered(
        self, slot: int, size: int, outcome: int, queue_us: int, predict_us: int, encode_us: int
    ) -> None:
        """The outcome, once, with the size of what the replica left in the slot and microseconds.

        The slot is the caller's to release if `outcome` < frame.RETRY; otherwise it is free already, and
        there is nothing in it for the caller.
        """


@dataclass(frozen=True, slots=True)
class QueuePipes:
    """The inherited fds of one front."""

    queue: int
    completions: int


class Dispatch:
    """Hands the requests of front number `front` in; each has `timeout_s` until its answer."""

    def __init__(
        self, memory: mmap.mmap, layout: slots.Layout, front: int, pipes: QueuePipes, timeout_s: float
    ) -> None:
        self.memory = memory
        self.layout = layout
        self.pipes = pipes
        self.table = SlotTable(memory, layout, front)
        self.generations = self.table.generations
        self.stride = layout.stride
        # Slot -> caller, in the order of hand-in.  That is the order of deadlines, as tick() needs it, for
        # as long as every request has the same timeout.
        self.pending: dict[int, Caller] = {}
        self.timeout_ns = int(timeout_s * 1e9)
        self.outbox: list[bytes] = []
        self.completed = 0
        self.replayed = 0
        self.rate = 0.0  # completions per second, smoothed
        self.now_ns = monotonic_ns()  # as of the last answers or the last tick
        self._rated = (self.now_ns, 0)
        self._call_soon: Callable[[Callable[[], None]], object] = _not_started

    def start(self, loop: AbstractEventLoop) -> None:
        """From now on `loop` reads completions; submit() raises RuntimeError before."""
        self._call_soon = loop.call_soon
        loop.add_reader(self.pipes.completions, self.drain)

    def queued(self) -> int:
        """Requests of all fronts that no replica has taken yet."""
        waiting = bytearray(4)
        fcntl.ioctl(self.pipes.queue, termios.FIONREAD, waiting)
        return int.from_bytes(waiting, sys.byteorder) // frame.DESCRIPTOR_SIZE

    def submit(self, caller: Caller, slot: int, size: int, kind: int, request_id: bytes) -> int:
        """Hand in the body of `size` bytes that lies in `slot`; when that was (monotonic ns)."""
        memory = self.memory
        now_ns = monotonic_ns()
        if memory[slots.QUARANTINED] and self._quarantined(self.table.body(slot, size), now_ns):
            self.table.release(slot)
            self.now_ns = now_ns
            self._call_soon(partial(caller.answered, slot, 0, QUARANTINED, 0, 0, 0))
            return now_ns
        generation = self.generations[slot]
        _pack_header(
            memory, SLOTS_OFFSET + slot * self.stride,
            generation, slots.WAITING, len(request_id), 0, now_ns + self.timeout_ns, now_ns, request_id,
        )  # fmt: skip
        self.pending[slot] = caller
        if not self.outbox:
            self._call_soon(self.flush)
        self.outbox.append(_pack_descriptor(slot, generation, size, kind, 0, 0))
        return now_ns

    def flush(self) -> None:
        """Write the descriptors of this loop turn. The pipe is larger than all slots together."""
        outbox, self.outbox = self.outbox, []
        for start in range(0, len(outbox), WRITE_SIZE):
            os.write(self.pipes.queue, b"".join(outbox[start : start + WRITE_SIZE]))

    def cancel(self, caller: Caller, slot: int) -> None:
        """The caller has left. A replica that has not started the request skips it."""
        self.now_ns = monotonic_ns()
        if self.pending.get(slot) is caller:
            del self.pending[slot]
            self.table.set_state(slot, slots.CANCELLED)

    def drain(self) -> None:
        """Read what the replicas have finished, many answers at once."""
        generations, pending = self.generations, self.pending
        completions = os.read(self.pipes.completions, READ_SIZE)
        self.now_ns = monotonic_ns()
        for (
            slot, generation, size, outcome, attempt, _, queue_us, predict_us, encode_us, kind
        ) in _unpack(completions):  # fmt: skip
            if generations.get(slot) != generation:
                continue
            self.completed += 1
            if outcome == frame.RETRY and slot in pending:
                self._retry(slot, size, kind, attempt)
                continue
            # This generation is over, though its caller may keep the slot for a while: a replica that dies
            # before it clears its mailbox is reported with a request that it has completed.
            generations[slot] = generation + 1 & GENERATION_MASK or 1
            caller = pending.pop(slot, None)
            if caller is None or outcome >= frame.RETRY or outcome == frame.SKIPPED:
                self.table.abandoned.pop(slot, None)
                self.table.release(slot, LARGE_BYTES + 1)
                if caller is not None:
                    # A replica skips a request that still has a caller only after its deadline.
                    caller.answered(slot, 0, EXPIRED if outcome == frame.SKIPPED else outcome, queue_us, 0, 0)
            else:
                caller.answered(slot, size, outcome, queue_us, predict_us, encode_us)

    def _retry(self, slot: int, size: int, kind: int, attempt: int) -> None:
        """The replica died with the request: its body still lies in the slot, so offer it once more."""
        self.replayed += 1
        self.table.set_state(slot, slots.WAITING)
        if not self.outbox:
            self._call_soon(self.flush)
        self.outbox.append(_pack_descriptor(slot, self.generations[slot], size, kind, attempt, 0))

    def tick(self) -> None:
        """Every 50 ms or so: deadlines, the completion rate, slots that come back."""
        now_ns = self.now_ns = monotonic_ns()
        while self.pending:
            slot = next(iter(self.pending))
            _, _, _, _, deadline_ns, handed_in_ns = slots.SLOT_HEADER.unpack_from(
                self.memory, self.layout.slot(slot)
            )
            if deadline_ns > now_ns:
                break  # nor has any later one passed: one timeout for all
            caller = self.pending.pop(slot)
            self.table.set_state(slot, slots.CANCELLED)
            caller.answered(slot, 0, EXPIRED, (now_ns - handed_in_ns) // 1000, 0, 0)
        self._measure_rate(now_ns)
        self.table.tick(now_ns)

    def _measure_rate(self, now_ns: int) -> None:
        """rate <- the mean of the old rate and of the completions per second since the last measurement."""
        since_ns, count = self._rated
        if now_ns - since_ns >= RATE_NS:
            recent = (self.completed - count) / (now_ns - since_ns) * 1e9
            self.rate = recent if not self.rate else 0.5 * (self.rate + recent)
            self._rated = (now_ns, self.completed)

    def retry_after(self) -> int:
        """Seconds until the present queue will have drained: depth / rate, from 1 to MAX_RETRY_AFTER_S."""
        if self.rate <= 0:
            return 1
        return max(1, min(MAX_RETRY_AFTER_S, round(len(self.pending) / self.rate + 0.5)))

    def _quarantined(self, body: memoryview, now_ns: int) -> bool:
        digest = hashlib.blake2b(body, digest_size=slots.DIGEST_SIZE).digest()
        for cell in range(slots.QUARANTINE_CELLS):
            offset = slots.QUARANTINE_OFFSET + cell * slots.QUARANTINE_CELL.size
            known, expiry_ns, _ = slots.QUARANTINE_CELL.unpack_from(self.memory, offset)
            if expiry_ns > now_ns and known == digest:
                return True
        return False
