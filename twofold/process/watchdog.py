"""Which children hang: no heartbeat for PATIENCE_S that waiting for a processor does not explain.

Reads the children's heartbeats and /proc; sends nothing.  The clock and the readings of /proc are arguments,
so the rest is arithmetic.

    silence += step - explained        at each look, while the stamp stays the same
    step      = time since the last look, at most MAX_STEP_S: a supervisor that got no processor itself for
                a while has seen nothing, and blames no child for it
    explained = the growth of run_delay in /proc/PID/schedstat, which the kernel counts when a wait ends;
                all of the step for a process that is runnable and gets no processor

A silent child is told SIGABRT, which prints its traceback (faulthandler), and KILL_AFTER_S later SIGKILL: a
stopped process hears nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 4.0
KILL_AFTER_S = 1.0
START_PATIENCE_S = 60.0  # until the first beat: imports may wait for a slow disk
LOOK_EVERY_S = 0.25
MAX_STEP_S = 0.5
RUNNING = 0.1  # of a step: a runnable process that used less of it has waited for a processor


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the kernel says of a process, both times since its start."""

    runnable: bool
    ran_ns: int
    waited_ns: int


def schedule_of(pid: int) -> Schedule | None:
    """From /proc (proc(5), sched-stats in the kernel's documentation); None if the process is gone."""
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        # The name, in parentheses, may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return Schedule(state == "R", int(ran), int(waited))


@dataclass(frozen=True, slots=True)
class Alarm:
    """A signal that is due to a silent child."""

    index: int
    pid: int
    number: signal.Signals
    silent_s: float


@dataclass(slots=True)
class _Watched:
    pid: int
    stamp: int = 0
    silent_s: float = 0.0
    schedule: Schedule | None = None
    aborted_s: float = 0.0  # `silent_s` at SIGABRT; 0: not sent
    start_patience_s: float = START_PATIENCE_S


class Watchdog:
    def __init__(
        self, words: memoryview, read: Callable[[int], Schedule | None] = schedule_of, now_s: float = 0.0
    ) -> None:
        """`words`: the children's heartbeats, cast to 64-bit words."""
        self._words = words
        self._read = read
        self._looked_s = now_s
        self._watched: dict[int, _Watched] = {}

    def watch(self, index: int, pid: int, start_patience_s: float = START_PATIENCE_S) -> None:
        """A child has started, whose heartbeat is the word at `index`."""
        self._words[index] = 0
        self._watched[index] = _Watched(pid, start_patience_s=start_patience_s)

    def adopt(self, index: int, pid: int) -> None:
        """As `watch`, for a child that beats already."""
        self._watched[index] = _Watched(pid, self._words[index])

    def forget(self, index: int) -> None:
        """It has ended."""
        self._watched.pop(index, None)

    def look(self, now_s: float) -> list[Alarm]:
        """The signals that are due now. Call it often; it looks every LOOK_EVERY_S."""
        passed_s = now_s - self._looked_s
        if passed_s < LOOK_EVERY_S:
            return []
        self._looked_s = now_s
        step_s = min(passed_s, MAX_STEP_S)
        alarms = (self._look_at(index, one, step_s) for index, one in self._watched.items())
        return [alarm for alarm in alarms if alarm is not None]

    def _look_at(self, index: int, one: _Watched, step_s: float) -> Alarm | None:
        stamp = self._words[index]
        if stamp != one.stamp:
            one.stamp, one.silent_s, one.schedule, one.aborted_s = stamp, 0.0, None, 0.0
            return None
        before, one.schedule = one.schedule, self._read(one.pid)
        one.silent_s += step_s - _explained_s(before, one.schedule, step_s)
        if one.aborted_s:
            due = one.silent_s - one.aborted_s >= KILL_AFTER_S
            return Alarm(index, one.pid, signal.SIGKILL, one.silent_s) if due else None
        if one.silent_s < (PATIENCE_S if stamp else one.start_patience_s):
            return None
        one.aborted_s = one.silent_s
        return Alarm(index, one.pid, signal.SIGABRT, one.silent_s)


def _explained_s(before: Schedule | None, after: Schedule | None, step_s: float) -> float:
    """Seconds of the step in which the process waited for a processor."""
    if before is None or after is None:
        return 0.0
    if after.runnable and after.ran_ns - before.ran_ns < step_s * RUNNING * 1e9:
        return step_s
    return min(step_s, max(0.0, (after.waited_ns - before.waited_ns) / 1e9))
