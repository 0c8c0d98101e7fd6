"""Finds children that hang: no heartbeat for PATIENCE_S, not counting time that they waited for a processor.

Reads the children's heartbeats and /proc; sends no signal.  The clock and the reader of /proc are arguments;
the rest is arithmetic.

    silence += step - explained        at each look, while the stamp stays the same
    step      = time since the last look, at most MAX_STEP_S: while the supervisor itself got no processor, it
                observed no child
    explained = the growth of run_delay in /proc/PID/schedstat, which the kernel counts when a wait ends;
                the whole step for a process that is runnable and gets no processor

Before the first heartbeat, imports may take long; of that time, only what the child spent stopped (state T of
proc(5)) counts as a hang: PATIENCE_S of it.

A silent child gets SIGABRT, on which faulthandler prints its traceback, and KILL_AFTER_S later SIGKILL, which
also ends a stopped process.
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
RUNNING = 0.1  # share of a step; a runnable process that ran for less has waited for a processor


@dataclass(frozen=True, slots=True)
class Schedule:
    """The scheduling of a process, from the kernel; both times count from its start."""

    runnable: bool
    ran_ns: int
    waited_ns: int
    stopped: bool = False  # by SIGSTOP or a terminal; a process under a debugger is not


def schedule_of(pid: int) -> Schedule | None:
    """Read /proc (proc(5), sched-stats in the kernel's documentation); None if the process has ended."""
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        # The name, in parentheses, may contain any character.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return Schedule(state == "R", int(ran), int(waited), state == "T")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A signal to send to a silent child; `silent_s` is its silence."""

    index: int
    pid: int
    number: signal.Signals
    silent_s: float


@dataclass(slots=True)
class _Watched:
    pid: int
    stamp: int = 0
    silent_s: float = 0.0
    stopped_s: float = 0.0  # how much of that it has been stopped, without a break
    schedule: Schedule | None = None
    aborted_s: float = 0.0  # `silent_s` at SIGABRT; 0: not sent
    start_patience_s: float = START_PATIENCE_S


class Watchdog:
    """The silence of each watched child."""

    def __init__(
        self, words: memoryview, read: Callable[[int], Schedule | None] = schedule_of, now_s: float = 0.0
    ) -> None:
        """`words`: the children's heartbeats, cast to 64-bit words."""
        self._words = words
        self._read = read
        self._looked_s = now_s
        self._watched: dict[int, _Watched] = {}

    def watch(self, index: int, pid: int, start_patience_s: float = START_PATIENCE_S) -> None:
        """Watch a child that has just started; its heartbeat is the word at `index`."""
        self._words[index] = 0
        self._watched[index] = _Watched(pid, start_patience_s=start_patience_s)

    def adopt(self, index: int, pid: int) -> None:
        """Watch a child that has started earlier; its heartbeat continues."""
        self._watched[index] = _Watched(pid, self._words[index])

    def forget(self, index: int) -> None:
        """Stop watching: the child has ended."""
        self._watched.pop(index, None)

    def look(self, now_s: float) -> list[Alarm]:
        """The signals to send now. Call it often; it reads the heartbeats every LOOK_EVERY_S."""
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
        one.stopped_s = one.stopped_s + step_s if one.schedule and one.schedule.stopped else 0.0
        if one.aborted_s:
            due = one.silent_s - one.aborted_s >= KILL_AFTER_S
            return Alarm(index, one.pid, signal.SIGKILL, one.silent_s) if due else None
        if one.silent_s < (PATIENCE_S if stamp else one.start_patience_s) and one.stopped_s < PATIENCE_S:
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
