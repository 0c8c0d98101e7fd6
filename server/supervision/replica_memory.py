"""What replicas write into shared memory, as their supervisor reads it: claimed requests, and counts.

Touches the mailboxes and the words of replicas, and the completion pipes.

The requests that a dead replica held stand in its mailbox.  The first descriptor that it had not
handled is the *fatal* request, on which it died, or the last one where it had handled all and could
not say so.  The fatal request is offered once more, and refused after its second death; the others
are offered again, and that is not counted against them.
"""

from __future__ import annotations

import os

from twofold.server.replica import frame, slots
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.quarantine import Quarantine

EMPTY_MAILBOX = bytes(slots.MAILBOX_SIZE)


class ReplicaMemory:
    """`replay`: whether a request is offered again when its replica has died."""

    def __init__(self, channels: Channels, quarantine: Quarantine, replay: bool) -> None:
        self._memory = channels.memory
        self._layout = channels.layout
        self._quarantine = quarantine
        self._replay = replay
        self._completions = channels.completion_writers()

    def close(self) -> None:
        for fd in self._completions:
            os.close(fd)

    def clear(self, index: int) -> None:
        """No request is held: for a replica that is about to be forked."""
        mailbox = _mailbox(index)
        self._memory[mailbox : mailbox + slots.MAILBOX_SIZE] = EMPTY_MAILBOX

    def served(self, index: int) -> int:
        """Requests that all replicas of this index have handled so far."""
        words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
        count: int = slots.REPLICA_WORDS.unpack_from(self._memory, words)[slots.REQUESTS_SERVED]
        return count

    def deadline_s(self, index: int) -> float:
        """When the request that a replica works on should be answered (monotonic); 0 if there is none."""
        mailbox = _mailbox(index)
        for cell in range(mailbox, mailbox + slots.MAILBOX_SIZE, frame.DESCRIPTOR_SIZE):
            slot, generation, _, kind, _, flag = frame.DESCRIPTOR.unpack_from(self._memory, cell)
            if kind and flag != frame.HANDLED:
                header = slots.SLOT_HEADER.unpack_from(self._memory, self._layout.slot(slot))
                return header[4] / 1e9 if header[0] == generation else 0.0
        return 0.0

    def settle(self, index: int, hung: bool, now_s: float) -> list[str]:
        """Hand back to the fronts what a dead replica held; notes on what was quarantined.

        `hung`: it was killed because its request passed the deadline, and so is not offered again.
        """
        mailbox = _mailbox(index)
        cells = frame.DESCRIPTOR.iter_unpack(self._memory[mailbox : mailbox + slots.MAILBOX_SIZE])
        held = [cell for cell in cells if cell[3]]
        self.clear(index)
        fatal = next((cell for cell in held if cell[5] != frame.HANDLED), held[-1] if held else None)
        notes = []
        for cell in held:
            slot, generation, size, kind, attempt, _ = cell
            outcome = frame.RETRY
            if cell is fatal:
                if hung or not self._replay:
                    outcome = frame.REFUSED
                elif attempt:
                    outcome = frame.REFUSED
                    notes += self._quarantined(slot, generation, size, now_s)
                attempt += 1
            record = frame.COMPLETION.pack(slot, generation, size, outcome, attempt, index, 0, 0, 0, kind)
            os.write(self._completions[slot // self._layout.slots_per_front], record)
        return notes

    def _quarantined(self, slot: int, generation: int, size: int, now_s: float) -> list[str]:
        """Quarantine the body of a request that has killed two replicas."""
        base = self._layout.slot(slot)
        if slots.SLOT_HEADER.unpack_from(self._memory, base)[0] != generation:
            return []  # its front was replaced, and the slot has another request
        start = base + slots.SLOT_HEADER_SIZE
        kept = self._quarantine.add(self._memory[start : start + size], int(now_s * 1e9))
        return [f"a request killed two replicas and is quarantined; {kept}"]


def _mailbox(index: int) -> int:
    return slots.MAILBOX_OFFSET + index * slots.MAILBOX_SIZE
