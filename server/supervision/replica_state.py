"""A replica as the supervisor sees it: state, age, failures, the reason of its last end.

No I/O; the clock comes in as an argument (monotonic seconds).  MOVES is the complete table of legal
moves; a move that it does not name is a bug, and raises KeyError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twofold.process.backoff import Backoff

USEFUL_LIFE_S = 10.0  # after which an end counts as the first failure again
SHORT_LOAD_S = 5.0  # a replica that loads faster is worth waiting for
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
    """One replica index through all its processes."""

    index: int
    gpu: str | None = None
    state: State = State.ABSENT
    pid: int = 0
    since_s: float = 0.0  # when it took its present state
    restarts: int = 0
    failures: int = 0  # ends in a row, none of them after a useful time
    retry_at_s: float = 0.0
    reason: str = ""  # of its last end
    cause: str = ""  # why the supervisor is ending it
    aborted_at_s: float = 0.0  # when it was sent SIGABRT; 0 if it was not
    load_s: float = 0.0  # how long its last load took
    memory_bytes: int = 0  # private ones
    spare: bool = False  # ordered to stand by
    served: int = 0  # the index's request count when this process was ordered

    def move(self, event: str, now_s: float) -> None:
        """Raises KeyError for a move that is not in the table."""
        self.state = MOVES[self.state][event]
        self.since_s = now_s

    def order(self, now_s: float) -> None:
        self.move("order", now_s)
        self.pid, self.cause, self.aborted_at_s = 0, "", 0.0

    def abort(self, cause: str, now_s: float) -> None:
        """It is being ended, for this cause."""
        self.cause, self.aborted_at_s = cause, now_s

    def die(self, reason: str, useful: bool, now_s: float) -> None:
        """`useful`: it answered requests since it was ready, so its death is not a crash loop."""
        loaded = self.state in (State.READY, State.SPARE)
        lived = loaded and (useful or now_s - self.since_s > USEFUL_LIFE_S)
        self.failures = 1 if lived else self.failures + 1
        self.restarts += 1
        self.reason = reason
        self.retry_at_s = now_s + RESTARTS.delay_s(self.failures)
        self.pid, self.cause, self.aborted_at_s = 0, "", 0.0
        self.move("died", now_s)

    def serves_soon(self, ever_ready: bool) -> bool:
        """Whether a request is worth queueing for it; `ever_ready`: some replica has loaded once."""
        soon = self.failures < 2 and self.load_s < SHORT_LOAD_S
        if self.state == State.LOADING:
            return soon and ever_ready
        return self.state == State.READY or (self.state == State.BACKOFF and soon)
