"""A child as its supervisor sees it: started, ready, asked to leave, ended, due again.

Touches the child's process and its readiness pipe.  Times are monotonic and come in as arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from twofold.process.backoff import Backoff
from twofold.process.forking import fork

# Runs in the child: gets the readiness pipe's writing end (-1: there is none), returns the exit code.
Life = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a child that has ended is due again, and whether it tells that it is ready."""

    backoff: Backoff
    healthy_s: float  # a life that was longer is no failure, so the next failure is the first again
    reports: bool = False  # the child writes one byte when it is ready; before that no life is healthy


@dataclass(slots=True)
class Child:
    """A role in the program, and the process that fills it now."""

    role: str  # a word of the supervisor's, for code and metrics
    policy: RestartPolicy
    life: Life
    number: int = -1  # among children of one role; -1: it is the only one
    retired: bool = False  # not to be started again
    pid: int = 0  # 0: no process now
    ready_fd: int = -1  # the readiness pipe, while nothing has come; -1: none
    ready: bool = False
    started_s: float = 0.0
    failures: int = 0  # in a row
    retry_at_s: float = 0.0
    leave_by_s: float = 0.0  # when patience ends; 0: it was not asked to leave
    beat: int = -1  # which word its heartbeat is; -1: nothing watches it

    @property
    def name(self) -> str:
        """For messages: "log writer", "front 0"."""
        words = self.role.replace("_", " ")
        return words if self.number < 0 else f"{words} {self.number}"

    def start(self, now_s: float) -> None:
        """Fork. Raises OSError; then `failed` says when to try again."""
        reading, writing = os.pipe() if self.policy.reports else (-1, -1)
        try:
            self.pid = fork(lambda: self.life(writing))
        except OSError:
            if reading >= 0:
                os.close(reading)
            raise
        finally:
            if writing >= 0:
                os.close(writing)
        self.ready_fd, self.started_s, self.ready = reading, now_s, False

    def due(self, now_s: float) -> bool:
        """Whether it is to be started now."""
        return not self.pid and not self.retired and now_s >= self.retry_at_s

    def hear(self) -> None:
        """The readiness pipe is readable: the child is ready, or has ended without."""
        self.ready = self.ready or bool(os.read(self.ready_fd, 16))
        self._close()

    def send(self, number: int) -> None:
        """Send a signal, if there is a process."""
        if self.pid:
            os.kill(self.pid, number)

    def leave(self, number: int, now_s: float, patience_s: float) -> None:
        """Ask it to leave by sending `number`, once; it should be gone `patience_s` later."""
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
        """It has ended, or could not start, for the `failures`th time in a row."""
        self.failures = failures
        self.retry_at_s = now_s + self.policy.backoff.delay_s(failures)

    def _close(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1
