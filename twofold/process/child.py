"""The supervisor's children: how one is made, when it is made again, and how it is asked to leave.

Touches processes and signals.  A child reports by one byte in a pipe that it accepts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from twofold.errors import ExitCode, TwofoldError
from twofold.logs.console import say
from twofold.process import prctl

LOG_WRITER, CONTROLLER, PROXY = "log writer", "controller", "proxy"
HEALTHY_LIFE = 1.0  # seconds; whoever dies sooner after its start has a reason to do it again
FIRST_DELAY = 0.2  # seconds; doubled with each further death
MAX_DELAY = 10.0
MAX_DOUBLINGS = 16  # 2.0 ** 1024 is no number, and a night is long
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
CAUGHT = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


@dataclass(slots=True)
class Child:
    """One place in the generation, and the process that fills it now."""

    role: str
    number: int = -1  # of a proxy
    old: bool = False  # of the generation that leaves: it is not replaced
    pid: int = 0
    report: int = -1  # the pipe in which it will say that it accepts
    accepts: bool = False
    started: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    leave_by: float = 0.0  # when patience ends; 0: it was not asked to leave

    @property
    def name(self) -> str:
        return self.role if self.number < 0 else f"{self.role} {self.number}"

    def start(self, life: Callable[[int], int], now: float) -> None:
        """Fork; `life` is given the pipe's writing end and returns the exit code. Raises OSError."""
        reading, writing = os.pipe()
        try:
            self.pid = fork(lambda: life(writing))
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.report, self.started, self.accepts = reading, now, False

    def hear(self) -> None:
        """Its pipe is readable."""
        self.accepts = self.accepts or bool(os.read(self.report, 16))
        os.close(self.report)
        self.report = -1

    def leave(self, number: int, now: float, patience: float) -> None:
        """Ask it, once."""
        if self.pid and not self.leave_by:
            self.leave_by = now + patience
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def ended(self, now: float) -> None:
        """It is no more. The first death after a healthy life costs no time."""
        lived = self.accepts and now - self.started > HEALTHY_LIFE
        self.pid, self.accepts = 0, False
        if self.report >= 0:
            os.close(self.report)
            self.report = -1
        self.failed(now, 1 if lived else self.failures + 1)

    def failed(self, now: float, failures: int) -> None:
        self.failures = failures
        doublings = min(failures - 2, MAX_DOUBLINGS)
        self.retry_at = now + (0.0 if failures < 2 else min(MAX_DELAY, FIRST_DELAY * 2.0**doublings))


def fork(life: Callable[[], int]) -> int:
    """The pid of a child that runs `life` and dies with this process."""
    parent = os.getpid()
    # A signal that came before the child has let go of our pipe would be read by us, as ours.
    signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    try:
        pid = os.fork()
        if not pid:
            _live(life, parent)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)


def _live(life: Callable[[], int], parent: int) -> None:
    code = int(ExitCode.INTERNAL)
    try:
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            signal.signal(number, signal.SIG_DFL)
        # A Ctrl-C and a reload are the supervisor's to handle.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        os.setpgid(0, 0)
        prctl.die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
        code = life()
    except TwofoldError as error:
        say("error", str(error))
        code = int(error.exit_code)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def reap() -> list[tuple[int, int]]:
    """(pid, status) of everybody who has ended."""
    dead: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return dead
        if not pid:
            return dead
        dead.append((pid, status))


def how(status: int) -> str:
    """The end of a process in words."""
    code = os.waitstatus_to_exitcode(status)
    names = {each.value: each.name for each in signal.Signals}  # of real-time signals two alone have one
    return f"signal {names.get(-code, -code)}" if code < 0 else f"exit code {code}"
