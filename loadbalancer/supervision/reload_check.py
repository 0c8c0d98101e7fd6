"""The check before a reload: the new program, run for nothing but its opinion on the new settings.

Touches one process of its own.  It runs beside the serving ones, and the supervisor goes on turning:
a crash is replaced, and a stop obeyed, however long the check takes.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

CHECK = "--check"  # the option by which a program says what it would do, and does not
PATIENCE_S = 60.0  # seconds
MAX_TEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class ReloadCheck:
    pid: int
    until_s: float
    output: int  # memfds, so that nobody has to read while it runs
    complaints: int

    def verdict(self, status: int) -> tuple[str, str]:
        """(the settings as JSON, "") or ("", why not), after its end."""
        output, complaints = _text(self.output), _text(self.complaints)
        os.close(self.output)
        os.close(self.complaints)
        if status == 0 and output:
            return output, ""
        last = complaints.strip().splitlines()[-1:] or ["it ended without a word"]
        return "", last[0].removeprefix("twofold: ")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def begin(command: list[str], now_s: float) -> ReloadCheck:
    """Run `command` with the option that makes it a check. Raises OSError."""
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
