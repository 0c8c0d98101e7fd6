"""Reload check: runs the new program with --check in a process of its own.

Touches that process and two memfds.  The supervisor's loop continues during the check, so crashed children
are replaced and signals are handled.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from twofold.process.exit_status import how

CHECK = "--check"  # the option with which the program only validates and prints its settings
PATIENCE_S = 60.0
MAX_TEXT = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class ReloadCheck:
    pid: int
    until_s: float
    output: int  # a memfd, so that it need not be read while the check runs
    complaints: int

    def verdict(self, status: int) -> tuple[str, str]:
        """After the process has ended: (settings as JSON, "") or ("", reason of the refusal)."""
        output, complaints = _text(self.output), _text(self.complaints)
        os.close(self.output)
        os.close(self.complaints)
        if status == 0 and output:
            return output, ""
        ending = how(os.waitstatus_to_exitcode(status))
        last = complaints.strip().splitlines()[-1:] or [f"the check of the new settings ended ({ending})"]
        return "", last[0].removeprefix("twofold: ")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def begin(command: list[str], now_s: float) -> ReloadCheck:
    """Start `command` with --check. Raises OSError."""
    output, complaints = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("output", "complaints"))
    actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, complaints, 2)]
    try:
        pid = os.posix_spawn(command[0], [*command, CHECK], os.environ, file_actions=actions, setpgroup=0)
    except OSError:
        os.close(output)
        os.close(complaints)
        raise
    return ReloadCheck(pid, now_s + PATIENCE_S, output, complaints)


def _text(fd: int) -> str:
    return os.pread(fd, MAX_TEXT, 0).decode("utf-8", "replace")
