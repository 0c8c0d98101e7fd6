"""The state that a supervisor passes to the new program by exec, at a reload.

Touches the descriptors that it passes.  exec keeps the process id, the children, the descriptors and the
blocked signals.  All other state is written to a memfd as JSON, in a format that an older program writes and
a newer one reads.
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
    config: str  # the new settings as JSON; checked already, so the file is not read again
    memory: int
    sockets: dict[str, int]
    pipes: dict[str, tuple[int, int]]  # of the access log, by the number of the proxy
    children: list[dict[str, Any]]  # role, number, pid, leave_by
    again: bool = False  # another reload was requested meanwhile

    def _descriptors(self) -> Iterator[int]:
        yield self.memory
        yield from self.sockets.values()
        for pipe in self.pipes.values():
            yield from pipe

    def execute(self, command: list[str]) -> OSError:
        """Replace this program by `command`. Returns only the error if that fails."""
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
    """Take the state of the previous program, once; its descriptors are made non-inheritable."""
    note = int(environ.pop(VARIABLE))
    os.lseek(note, 0, os.SEEK_SET)
    with open(note) as reading:
        taken = ExecHandover(**json.load(reading))
    for fd in taken._descriptors():
        os.set_inheritable(fd, False)
    return taken
