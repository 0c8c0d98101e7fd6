"""The two records that travel through pipes: a request's descriptor and its completion.

House rules of this file: standard library only, Python 3.7 and up, no I/O.

Both records are far below PIPE_BUF, and both sizes divide 4096: a write of whole records up to
PIPE_BUF is atomic (POSIX.1, write()), and a read of whole records never sees half of one.

    descriptor   16 bytes   front -> any replica     "slot s, generation g, holds n bytes of kind k"
    completion   32 bytes   replica -> that front    "slot s, generation g: answered with n bytes, like so"
                            supervisor -> front      "slot s, generation g: its replica died"

The *generation* counts a slot's requests.  A record whose generation is not the slot's present one is
dropped by its reader: that is why a late answer can never reach another caller.
"""

import struct

# slot, generation, length of the body in bytes, kind, attempt (0 first, 1 replayed), flag
DESCRIPTOR = struct.Struct("<IIIBBH")
FLAG_OFFSET = 14
HANDLED = 1  # set in the mailbox by the replica: answered, and its completion about to be written
# slot, generation, length of the answer in bytes (in RETRY and REFUSED: of the body), outcome, attempt,
# replica, microseconds in the queue, in predict and in encoding the answer, and a reserved word: zero from
# a replica; the supervisor puts the kind of the request there, which is needed to offer it again
COMPLETION = struct.Struct("<IIIBBHIIII")

DESCRIPTOR_SIZE = DESCRIPTOR.size
COMPLETION_SIZE = COMPLETION.size

# Kinds of request. Zero is "no descriptor": an empty mailbox cell.
JSON = 1
BYTES = 2

# Outcomes that a replica reports.
ANSWERED = 1  # the slot holds the JSON of what predict() returned
RAISED = 2  # predict() raised, or its result is not JSON; the log has the traceback
MALFORMED = 3  # the body is not JSON; the slot holds the reason as UTF-8 text
SKIPPED = 4  # not started: its client had left or its deadline had passed
TOO_LARGE = 5  # the answer does not fit into the slot

# Outcomes that the supervisor reports of a request whose replica died.
RETRY = 16  # the first death: offer it once more
REFUSED = 17  # the second death, or replay is off: answer 500
