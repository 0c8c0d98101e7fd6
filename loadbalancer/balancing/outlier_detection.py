"""Which instance is ejected, for how long, and how it comes back: what its own answers say of it.

Pure arithmetic, the clock is an argument (monotonic ns).  The controller probes from outside; this is
judged by each proxy from the requests that it sent.

    IN --(a threshold, or one refused connection)--> OUT --(5 s x count, at most 60 s)--> TRIAL
    TRIAL --(one success)--> IN                   TRIAL --(one failure)--> OUT, for longer

Only what fails *in a row* counts: an answer without a 5xx ends every row.  That alone would still
eject good instances whose caller sends nothing but payloads that the model cannot take; so nobody
is ejected for answers that most of the others give as well, never more than half of the pool, and
never the last one.  An instance that cannot be connected to is ejected whatever the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

SECOND = 1_000_000_000
EJECTION_NS = 5 * SECOND  # times how often in a row
LONGEST_NS = 60 * SECOND
FORGIVEN = 60 * SECOND  # so long without an ejection: the next one counts as the first
MOST_EJECTED_PERCENT = 50


class Failure(IntEnum):
    ANSWER = 0  # a 5xx
    CONNECT = 1  # no connection within connect_timeout
    LATE = 2  # no answer within predict_timeout
    REFUSED = 3  # nobody listens
    BROKEN = 4  # no HTTP, or an answer that broke off; stands in one row with 5xx


THRESHOLD = {Failure.ANSWER: 5, Failure.CONNECT: 3, Failure.LATE: 3, Failure.REFUSED: 1}
COMMON = 2  # failures in a row at which one of the others counts as failing too


class OutlierRecord:
    """What is held against one instance."""

    __slots__ = ("count", "ejections", "on_trial", "out", "rows", "unreachable", "until_ns")

    def __init__(self) -> None:
        self.rows = [0] * len(Failure)  # failures since the last success, by kind
        self.out = False
        self.until_ns = 0  # when the last ejection ends, or would have ended
        self.count = 0  # ejections in a row
        self.ejections = 0  # ever
        self.on_trial = False
        self.unreachable = False

    def condemns(self, failure: Failure) -> bool:
        """Count the failure; True when it is enough for an ejection."""
        failure = Failure.ANSWER if failure == Failure.BROKEN else failure
        self.rows[failure] += 1
        return self.on_trial or self.rows[failure] >= THRESHOLD[failure]

    def eject(self, now_ns: int, unreachable: bool) -> None:
        if now_ns - self.until_ns > FORGIVEN:
            self.count = 0
        self.count += 1
        self.ejections += 1
        self.until_ns = now_ns + min(EJECTION_NS * self.count, LONGEST_NS)
        self.out = True
        self.on_trial = False
        self.unreachable = unreachable

    def expire(self, now_ns: int) -> bool:
        """Let it stand trial when its time is over; True if that happened now."""
        if not self.out or now_ns < self.until_ns:
            return False
        self.out = False
        self.on_trial = True
        return True

    def acquit(self) -> bool:
        """A success, of a request or of a probe; True if it had been out or on trial."""
        returned = self.out or self.on_trial
        self.rows = [0] * len(Failure)
        self.out = self.on_trial = self.unreachable = False
        return returned


def may_eject(others: Sequence[OutlierRecord], total: int) -> bool:
    """Whether the pool can spare one for its answers, and they are its own fault.

    `others` are in rotation besides it, out of `total` instances that are meant to serve.
    """
    if not others or (total - len(others)) * 100 > MOST_EJECTED_PERCENT * total:
        return False
    failing = sorted(record.rows[Failure.ANSWER] for record in others)
    return failing[(len(failing) - 1) // 2] < COMMON
