"""User instructions of processes under callgrind: their counters are read while they run.

Touches the control pipes of the processes that were started with `wrapped`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bench.environments import Unavailable

TOOLS = ("valgrind", "vgdb")  # both of Debian's package `valgrind`
READ_SECONDS = 60
VARIABLES = {"PYTHONHASHSEED": "0"}
_COUNTER = re.compile(r"^events-\d+: (\d+)$", re.MULTILINE)  # one per thread; `events-1-0` is a frame's


def find_tools() -> None:
    for name in TOOLS:
        if shutil.which(name) is None:
            raise Unavailable(f"{name} is not installed: apt-get install valgrind")


def wrapped(command: list[str], prefix: Path) -> list[str]:
    """The command under callgrind, all processes it starts included; `prefix` begins its pipes' names."""
    line = ["valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes", f"--vgdb-prefix={prefix}"]
    return [*line, "--callgrind-out-file=/dev/null", *command]


def parse(status: str) -> int:
    """The sum over all threads; raises ValueError where callgrind tells no counter."""
    found = _COUNTER.findall(status)
    if not found:
        raise ValueError(f"no counter in what callgrind says: {status[:200]!r}")
    return sum(map(int, found))


def read(pids: Iterable[int], prefix: Path) -> int:
    """The sum over these processes, so far; raises RuntimeError where one does not answer."""
    return sum(_read(pid, prefix) for pid in pids)


def _read(pid: int, prefix: Path) -> int:
    command = ["vgdb", f"--vgdb-prefix={prefix}", f"--pid={pid}", "status", "internal"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=READ_SECONDS)
        return parse(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise RuntimeError(f"process {pid} does not tell its instructions: {error}") from error
