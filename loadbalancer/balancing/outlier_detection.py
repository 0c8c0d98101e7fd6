"""Outlier detection: ejection of failing instances, its duration, and their return.

Pure arithmetic, the clock is an argument (monotonic ns).  The controller probes health paths; this module
works on the outcomes of the requests that a proxy sent.

    IN --(a threshold, or one refused connection)--> OUT --(5 s x count, at most 60 s)--> TRIAL
    TRIAL --(one success)--> IN                   TRIAL --(one failure)--> OUT, for longer

Only consecutive failures count: a response without a 5xx resets all counts.  A caller that sends only invalid
payloads could still eject good instances.  Therefore an instance is not ejected for responses that most
others give as well; at most half of the pool is ejected, and never the last instance.  An instance that
refuses connections is ejected independently of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

SECOND_NS = 1_000_000_000
EJECTION_NS = 5 * SECOND_NS  # multiplied by the number of consecutive ejections
LONGEST_NS = 60 * SECOND_NS
FORGIVEN_NS = 60 * SECOND_NS  # time without an ejection after which the next one counts as the first
MOST_EJECTED_PERCENT = 50


class Failure(IntEnum):
    ANSWER = 0  # a 5xx
    CONNECT = 1  # no connection within connect_timeout
    LATE = 2  # no response within predict_timeout
    REFUSED = 3  # the connection was refused
    BROKEN = 4  # invalid HTTP, or an incomplete response; counted together with 5xx


THRESHOLD = {Failure.ANSWER: 5, Failure.CONNECT: 3, Failure.LATE: 3, Failure.REFUSED: 1}
COMMON = 2  # consecutive failures at which another instance counts as failing, too


class OutlierRecord:
    """The failures and ejections of one instance."""

    __slots__ = ("count", "ejections", "on_trial", "out", "rows", "unreachable", "until_ns")

    def __init__(self) -> None:
        self.rows = [0] * len(Failure)  # failures since the last success, by kind
        self.out = False
        self.until_ns = 0  # scheduled end of the last ejection
        self.count = 0  # consecutive ejections
        self.ejections = 0  # total
        self.on_trial = False
        self.unreachable = False

    def condemns(self, failure: Failure) -> bool:
        """Count the failure; True if it reaches the threshold for an ejection."""
        failure = Failure.ANSWER if failure == Failure.BROKEN else failure
        self.rows[failure] += 1
        return self.on_trial or self.rows[failure] >= THRESHOLD[failure]

    def eject(self, now_ns: int, unreachable: bool) -> None:
        if now_ns - self.until_ns > FORGIVEN_NS:
            self.count = 0
        self.count += 1
        self.ejections += 1
        self.until_ns = now_ns + min(EJECTION_NS * self.count, LONGEST_NS)
        self.out = True
        self.on_trial = False
        self.unreachable = unreachable

    def expire(self, now_ns: int) -> bool:
        """Put the instance on trial when its ejection has ended; True if it changed now."""
        if not self.out or now_ns < self.until_ns:
            return False
        self.out = False
        self.on_trial = True
        return True

    def acquit(self) -> bool:
        """Clear the record after a success of a request or probe; True if it was out or on trial."""
        returned = self.out or self.on_trial
        self.rows = [0] * len(Failure)
        self.out = self.on_trial = self.unreachable = False
        return returned


def may_eject(others: Sequence[OutlierRecord], total: int) -> bool:
    """Whether one more instance may be ejected for its responses.

    `others`: the records of the other instances in rotation, out of `total` configured to serve. False if
    more than MOST_EJECTED_PERCENT would be out, or more than half of the others fail, too.
    """
    if not others or (total - len(others)) * 100 > MOST_EJECTED_PERCENT * total:
        return False
    failing = sorted(record.rows[Failure.ANSWER] for record in others)
    return failing[(len(failing) - 1) // 2] < COMMON
