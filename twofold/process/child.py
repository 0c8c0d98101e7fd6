"""The state of a child in its supervisor: started, ready, signalled to leave, ended, due again.

Touches the child's process and its readiness pipe.  Times are arguments, in monotonic seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from twofold.process.backoff import Backoff
from twofold.process.forking import fork

# The function that a child runs.  Its argument is the writing end of the readiness pipe (-1: none), its
# result the exit code.
EntryPoint = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child that has ended is started again, and whether it reports readiness."""

    backoff: Backoff
    healthy_s: float  # the end of a process that ran longer counts as the first failure
    reports: bool = False  # the child writes one byte when it is ready; an end before that is a failure


@dataclass(slots=True)
class Child:
    """A role in the program, and its current process."""

    role: str  # name in code and metrics
    policy: RestartPolicy
    entry_point: EntryPoint
    number: int = -1  # among children of one role; -1: the only one
    retired: bool = False  # never started again
    pid: int = 0  # 0: no process
    ready_fd: int = -1  # the readiness pipe, until it is read; -1: none
    ready: bool = False
    started_s: float = 0.0
    failures: int = 0  # successive ones
    retry_at_s: float = 0.0
    leave_by_s: float = 0.0  # deadline of leave(); 0: not called
    beat: int = -1  # index of its heartbeat word; -1: not watched

    @property
    def name(self) -> str:
        """The name in messages: "log writer", "front 0"."""
        words = self.role.replace("_", " ")
        return words if self.number < 0 else f"{words} {self.number}"

    def start(self, now_s: float) -> None:
        """Fork the process. Raises OSError; the caller then calls `failed`."""
        reading, writing = os.pipe() if self.policy.reports else (-1, -1)
        try:
            self.pid = fork(lambda: self.entry_point(writing))
        except OSError:
            if reading >= 0:
                os.close(reading)
            raise
        finally:
            if writing >= 0:
                os.close(writing)
        self.ready_fd, self.started_s, self.ready = reading, now_s, False

    def due(self, now_s: float) -> bool:
        """Whether the child is to be started now."""
        return not self.pid and not self.retired and now_s >= self.retry_at_s

    def read_readiness(self) -> None:
        """Read the readable readiness pipe: one byte if the child is ready, end of file if it has ended."""
        self.ready = self.ready or bool(os.read(self.ready_fd, 16))
        self._close()

    def send(self, number: int) -> None:
        """Send a signal if there is a process."""
        if self.pid:
            os.kill(self.pid, number)

    def leave(self, number: int, now_s: float, patience_s: float) -> None:
        """Send the signal `number` once; the child should have ended `patience_s` later."""
        if self.pid and not self.leave_by_s:
            self.leave_by_s = now_s + patience_s
            self.send(number)

    def ended(self, now_s: float) -> None:
        """The process was reaped."""
        healthy = now_s - self.started_s > self.policy.healthy_s and (self.ready or not self.policy.reports)
        self.pid, self.ready = 0, False
        self._close()
        self.failed(now_s, 1 if healthy else self.failures + 1)

    def failed(self, now_s: float, failures: int) -> None:
        """The child has ended or could not start; `failures` is the number of successive failures."""
        self.failures = failures
        self.retry_at_s = now_s + self.policy.backoff.delay_s(failures)

    def _close(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1
