"""A replica as the supervisor sees it: state, age, failures, the reason of its last end.

No I/O; the clock comes in as an argument.  The table of legal moves is the truth about a replica's
life, and a move that it does not name is a bug that should be loud.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twofold.process.backoff import Backoff

LONG_LIFE = 10.0  # seconds after which a death counts as the first again
RESTARTS = Backoff(first_s=0.25, most_s=30.0)


class State(StrEnum):
    ABSENT = "dead"  # none ordered
    LOADING = "loading"
    READY = "ready"
    SPARE = "spare"  # loaded, and waiting to be needed
    BACKOFF = "backoff"  # died; to be ordered again when its delay is over
    LEAVING = "leaving"  # told to end


MOVES: dict[State, dict[str, State]] = {
    State.ABSENT: {"order": State.LOADING},
    State.LOADING: {
        "ready": State.READY,
        "spare": State.SPARE,
        "died": State.BACKOFF,
        "leave": State.LEAVING,
    },
    State.READY: {"died": State.BACKOFF, "leave": State.LEAVING},
    State.SPARE: {"called": State.READY, "died": State.BACKOFF, "leave": State.LEAVING},
    State.BACKOFF: {"order": State.LOADING, "leave": State.ABSENT},
    State.LEAVING: {"died": State.ABSENT, "leave": State.LEAVING},
}


@dataclass(slots=True)
class Replica:
    """One replica index through all its lives."""

    index: int
    gpu: str | None = None
    state: State = State.ABSENT
    pid: int = 0
    since: float = 0.0  # when it took its present state
    restarts: int = 0
    failures: int = 0  # deaths in a row without a useful life between
    retry_at: float = 0.0
    reason: str = ""
    cause: str = ""  # why we are killing it ourselves
    aborted_at: float = 0.0
    load_seconds: float = 0.0
    memory: int = 0  # bytes that are its own
    spare: bool = False  # ordered to stand by
    served: int = 0  # the index's request count when this life began

    def move(self, event: str, now: float) -> None:
        self.state = MOVES[self.state][event]
        self.since = now

    def order(self, now: float) -> None:
        self.move("order", now)
        self.pid, self.cause, self.aborted_at = 0, "", 0.0

    def die(self, reason: str, useful: bool, now: float) -> None:
        """`useful`: it answered requests since it was ready, so its death is not a crash loop."""
        lived = self.state in (State.READY, State.SPARE) and (useful or now - self.since > LONG_LIFE)
        self.failures = 1 if lived else self.failures + 1
        self.restarts += 1
        self.reason = reason
        self.retry_at = now + RESTARTS.delay_s(self.failures)
        self.pid, self.cause, self.aborted_at = 0, "", 0.0
        self.move("died", now)
