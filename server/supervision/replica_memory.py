"""The supervisor's view of the shared memory that replicas write: claimed requests and counts.

Touches the mailboxes and the words of replicas, and the completion pipes.

The mailbox of a dead replica has the descriptors of the requests that it held.  The *fatal* request is the
first one that is not marked as handled.  If all are marked, it is the last one, which was not reported.
The fatal request is offered once more; after a second death it is refused.  The other requests are offered
again, and their attempts are not counted.
"""

from __future__ import annotations

import os

from twofold.server.replica import frame, slots
from twofold.server.supervision.channels import Channels
from twofold.server.supervision.quarantine import Quarantine

EMPTY_MAILBOX = bytes(slots.MAILBOX_SIZE)


class ReplicaMemory:
    """Reads claims and counts; hands back the requests of dead replicas.

    `replay`: a request is offered again after the death of its replica.
    """

    def __init__(self, channels: Channels, quarantine: Quarantine, replay: bool) -> None:
        self._memory = channels.memory
        self._layout = channels.layout
        self._quarantine = quarantine
        self._replay = replay
        self._completions = channels.completion_writers()

    def close(self) -> None:
        """Close the completion pipes."""
        for fd in self._completions:
            os.close(fd)

    def clear(self, index: int) -> None:
        """Empty the mailbox, before the replica is forked."""
        mailbox = _mailbox(index)
        self._memory[mailbox : mailbox + slots.MAILBOX_SIZE] = EMPTY_MAILBOX

    def served(self, index: int) -> int:
        """Number of requests that all processes of this replica index have handled."""
        words = slots.REPLICA_WORDS_OFFSET + index * slots.REPLICA_WORDS_SIZE
        count: int = slots.REPLICA_WORDS.unpack_from(self._memory, words)[slots.REQUESTS_SERVED]
        return count

    def deadline_s(self, index: int) -> float:
        """Deadline of the request that a replica computes, in monotonic seconds; 0 if there is none."""
        mailbox = _mailbox(index)
        for cell in range(mailbox, mailbox + slots.MAILBOX_SIZE, frame.DESCRIPTOR_SIZE):
            slot, generation, _, kind, _, flag = frame.DESCRIPTOR.unpack_from(self._memory, cell)
            if kind and flag != frame.HANDLED:
                header = slots.SLOT_HEADER.unpack_from(self._memory, self._layout.slot(slot))
                return header[4] / 1e9 if header[0] == generation else 0.0
        return 0.0

    def settle(self, index: int, hung: bool, now_s: float) -> list[str]:
        """Hand the requests of a dead replica back to the fronts. Returns notes on quarantined bodies.

        `hung`: the replica was killed because its request passed the deadline; that request is refused.
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
            return []  # the front was replaced, and the slot holds another request
        start = base + slots.SLOT_HEADER_SIZE
        kept = self._quarantine.add(self._memory[start : start + size], int(now_s * 1e9))
        return [f"a request killed two replicas and is quarantined; {kept}"]


def _mailbox(index: int) -> int:
    return slots.MAILBOX_OFFSET + index * slots.MAILBOX_SIZE
