"""What a supervisor leaves to the program that replaces it in its own process, at a reload.

Touches the descriptors that it passes on.  `os.exec` keeps the process: its id, its children, its
descriptors, and the signals that are blocked.  So nobody outside can tell, and nothing is lost; but
whatever the next program shall know has to be written down, in a format that an older program wrote
and a newer one reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "TWOFOLD_BALANCE_HANDOVER"


@dataclass(frozen=True, slots=True)
class ExecHandover:
    config: str  # the new one, as JSON: it has been checked, and its file may have changed since
    memory: int
    sockets: dict[str, int]
    pipes: dict[str, tuple[int, int]]  # of the access log, by the number of the proxy
    children: list[dict[str, Any]]  # role, number, pid, leave_by
    again: bool = False  # somebody has asked for another reload meanwhile

    def _descriptors(self) -> Iterator[int]:
        yield self.memory
        yield from self.sockets.values()
        for pipe in self.pipes.values():
            yield from pipe

    def execute(self, command: list[str]) -> OSError:
        """Become `command`. It returns only if that is not possible: why."""
        note = os.memfd_create("twofold-balance-handover", os.MFD_CLOEXEC)
        passed = [*self._descriptors(), note]
        try:
            with open(note, "w", closefd=False) as writing:
                json.dump(asdict(self), writing)
            for fd in passed:
                os.set_inheritable(fd, True)
            os.execve(command[0], command, os.environ | {VARIABLE: str(note)})
        except OSError as error:
            for fd in passed:
                os.set_inheritable(fd, False)
            os.close(note)
            return error


def pending(environ: MutableMapping[str, str]) -> bool:
    return VARIABLE in environ


def receive(environ: MutableMapping[str, str]) -> ExecHandover:
    """What the program before us left, once; no child of ours inherits it."""
    note = int(environ.pop(VARIABLE))
    os.lseek(note, 0, os.SEEK_SET)
    with open(note) as reading:
        taken = ExecHandover(**json.load(reading))
    for fd in taken._descriptors():
        os.set_inheritable(fd, False)
    return taken
