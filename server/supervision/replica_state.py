"""The state of a replica in the supervisor: state, age, failures, reason of the last end.

Touches nothing; times are arguments, in monotonic seconds.  MOVES is the complete table of legal
transitions.  Any other transition is a bug and raises KeyError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twofold.process.backoff import Backoff

USEFUL_LIFE_S = 10.0  # an end after a longer time ready counts as the first failure
SHORT_LOAD_S = 5.0  # requests wait for a replica that loads faster
RESTARTS = Backoff(first_s=0.25, most_s=30.0)


class State(StrEnum):
    """The states of a replica; the values are those of the status."""

    ABSENT = "dead"  # not ordered
    LOADING = "loading"
    READY = "ready"
    SPARE = "spare"  # loaded, standing by
    BACKOFF = "backoff"  # died; ordered again after a delay
    LEAVING = "leaving"  # signalled to stop


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
    """One replica index, across all its processes."""

    index: int
    gpu: str | None = None
    state: State = State.ABSENT
    pid: int = 0
    since_s: float = 0.0  # time of the last transition
    restarts: int = 0
    failures: int = 0  # successive ends without a useful life
    retry_at_s: float = 0.0
    reason: str = ""  # of the last end
    cause: str = ""  # why the supervisor ends the process; empty if it does not
    aborted_at_s: float = 0.0  # time of SIGABRT; 0 if not sent
    load_s: float = 0.0  # duration of the last load
    memory_bytes: int = 0  # private memory
    spare: bool = False  # ordered as a spare
    served: int = 0  # the index's request count when this process was ordered

    def move(self, event: str, now_s: float) -> None:
        """Change the state. Raises KeyError for a transition that is not in the table."""
        self.state = MOVES[self.state][event]
        self.since_s = now_s

    def order(self, now_s: float) -> None:
        """A process was ordered from the fork server."""
        self.move("order", now_s)
        self.pid, self.cause, self.aborted_at_s = 0, "", 0.0

    def abort(self, cause: str, now_s: float) -> None:
        """SIGABRT is sent, for this cause."""
        self.cause, self.aborted_at_s = cause, now_s

    def die(self, reason: str, useful: bool, now_s: float) -> None:
        """The process has ended. `useful`: it had answered requests, so this is not a crash loop."""
        loaded = self.state in (State.READY, State.SPARE)
        lived = loaded and (useful or now_s - self.since_s > USEFUL_LIFE_S)
        self.failures = 1 if lived else self.failures + 1
        self.restarts += 1
        self.reason = reason
        self.retry_at_s = now_s + RESTARTS.delay_s(self.failures)
        self.pid, self.cause, self.aborted_at_s = 0, "", 0.0
        self.move("died", now_s)

    def serves_soon(self, ever_ready: bool) -> bool:
        """Whether requests may be queued for this replica. `ever_ready`: some replica has loaded once."""
        soon = self.failures < 2 and self.load_s < SHORT_LOAD_S
        if self.state == State.LOADING:
            return soon and ever_ready
        return self.state == State.READY or (self.state == State.BACKOFF and soon)
