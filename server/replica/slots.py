"""The shared memory of one instance: where everything lies, and which process may write it.

House rules of this file: standard library only, Python 3.7 and up.

One memfd, mapped whole by every process of the instance.  It has no name, so nothing of it
outlives the processes; it is sparse, so room that was never touched costs nothing.

    offset                     size                        written by
    0        control words     4096                        supervisor
    4096     quarantine        64 x 32                     supervisor
    8192     mailboxes         MAX_REPLICAS x 128          that replica (the kernel, in readv)
    ...      replica words     MAX_REPLICAS x 64           that replica
    ...      counters          MAX_FRONTS x 16384          that front
    ...      instance status   2 x 65536                   supervisor
    ...      slots             fronts x slots_per_front    see below

    slot:  | header 256 | request body ... | answer ... |     each part starts on a page
             front        front              the replica that claimed the slot

A slot belongs to one front for ever: front f owns [f*n, (f+1)*n), so no allocator is shared.  A
front may reuse a slot only after its completion, or the news of its replica's death, has come back.

The mailbox is the claim: a replica reads descriptors with readv() straight into its own mailbox,
so that the kernel makes the claim visible in the very step that takes it from the queue, and no
kill can fall between the two.  It clears each cell after writing the completion.

Why no atomics: every hand-over of a slot goes through a pipe, and write() and read() on a pipe are
full barriers; the words that are read without one (counters, control words) are single aligned
stores whose reader tolerates a stale value.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

PAGE = 4096
MAX_REPLICAS = 256
MAX_FRONTS = 32
MAX_CLAIM = 8  # descriptors that a replica may take in one read

CONTROL_SIZE = PAGE
QUARANTINE_CELLS = 64
DIGEST_SIZE = 16  # of a body, BLAKE2b
QUARANTINE_CELL = struct.Struct("<16sQQ")  # digest, expiry (monotonic ns), zero
MAILBOX_SIZE = 128
REPLICA_WORDS_SIZE = 64
COUNTERS_SIZE = 16384
STATUS_SIZE = 65536

QUARANTINE_OFFSET = CONTROL_SIZE
MAILBOX_OFFSET = 2 * PAGE
REPLICA_WORDS_OFFSET = MAILBOX_OFFSET + MAX_REPLICAS * MAILBOX_SIZE
COUNTERS_OFFSET = REPLICA_WORDS_OFFSET + MAX_REPLICAS * REPLICA_WORDS_SIZE
STATUS_OFFSET = COUNTERS_OFFSET + MAX_FRONTS * COUNTERS_SIZE
SLOTS_OFFSET = STATUS_OFFSET + 2 * STATUS_SIZE

# Control words: 32-bit, written by the supervisor, read by all.
CONTROL = struct.Struct("<I")
QUARANTINED = 0  # how many quarantine cells are in use; 0 lets fronts skip the hash
READY_REPLICAS = 4
DRAINING = 8
STATUS_SEQUENCE = 12  # which half of the instance status is whole: sequence % 2
UNAVAILABLE = 16  # 1 when no replica is ready and none is about to be: fronts refuse at once

# Heartbeats, behind the control words: 64-bit, each stamped (CLOCK_MONOTONIC, ns) by the one process that it
# belongs to: the fronts by number, then these two.
HEARTBEATS_OFFSET = 2048
HEARTBEAT = struct.Struct("<Q")
LOG_WRITER_BEAT = MAX_FRONTS
FORK_SERVER_BEAT = MAX_FRONTS + 1
HEARTBEATS = MAX_FRONTS + 2

# Replica words: 64-bit counters of one replica.
REPLICA_WORDS = struct.Struct("<QQQQQQQQ")
REQUESTS_SERVED = 0
LOG_LINES_DROPPED = 1

# generation, state, length of the request id, zero, deadline and hand-in time (both CLOCK_MONOTONIC
# in ns, which is one clock for every process of a machine), then the request id
SLOT_HEADER = struct.Struct("<IBBHQQ")
MAX_REQUEST_ID = 136
SLOT_HEADER_AND_ID = struct.Struct("<IBBHQQ%ds" % MAX_REQUEST_ID)  # shorter ids are filled up with NUL
SLOT_HEADER_SIZE = 256
STATE_OFFSET = 4
# States. The front sets WAITING and CANCELLED, the replica DONE, before it writes the completion: a
# front that replaces a killed one reads here which of its slots a replica may still hold.
DONE = 0
WAITING = 1
CANCELLED = 2
REQUEST_ID_OFFSET = SLOT_HEADER.size


def pages(size: int) -> int:
    """`size` in bytes, rounded up to whole pages."""
    return (size + PAGE - 1) // PAGE * PAGE


class Layout:
    """Where the slots of one instance lie.

    A slot's request starts `SLOT_HEADER_SIZE` behind the slot, so that a small request touches one
    page together with its header; its answer starts `answer_offset` behind the slot.
    """

    __slots__ = ("fronts", "slots_per_front", "max_body", "max_answer", "answer_offset", "stride", "size")

    def __init__(self, fronts: int, slots_per_front: int, max_body: int, max_answer: int) -> None:
        self.fronts = fronts
        self.slots_per_front = slots_per_front
        self.max_body = max_body
        self.max_answer = max_answer
        self.answer_offset = pages(SLOT_HEADER_SIZE + max_body)
        self.stride = self.answer_offset + pages(max_answer)
        self.size = SLOTS_OFFSET + fronts * slots_per_front * self.stride

    def slot(self, number: int) -> int:
        return SLOTS_OFFSET + number * self.stride

    def as_tuple(self) -> tuple[Any, ...]:
        return (self.fronts, self.slots_per_front, self.max_body, self.max_answer)


def attach(fd: int, layout: Layout) -> mmap.mmap:
    """Map the instance's memory. The fd may be closed afterwards; the mapping stays."""
    return mmap.mmap(fd, layout.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
