"""What a server costs: processor time and proportional memory of all its processes.  Reads /proc only.

A server's processes are the descendants of the one we started, and whatever shares its session.
Processor time of a process that ended is not lost: its parent's `cutime`/`cstime` holds it once
reaped, so a sum over (own + reaped children) of the living never goes back.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = "01"  # in /proc/net/tcp
TICK = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One line of /proc/<pid>/stat; seconds are user + system, reaped children included."""

    pid: int
    parent: int
    session: int
    seconds: float
    state: str


def processes() -> dict[int, Process]:
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:  # ended between the listing and the read
            continue
        # The command in parentheses may itself hold spaces and parentheses: proc(5).
        fields = text[text.rindex(")") + 2 :].split()
        seconds = sum(map(int, fields[11:15])) * TICK
        found[int(entry)] = Process(int(entry), int(fields[1]), int(fields[3]), seconds, fields[0])
    return found


def processes_alive() -> set[int]:
    """Pids of everything that still runs: zombies have given back all but their number."""
    return {process.pid for process in processes().values() if process.state not in "ZX"}


@dataclass(frozen=True)
class Tree:
    """All processes of one server, by the pid of its first one (which leads a session)."""

    root: int

    def members(self) -> list[Process]:
        everything = processes()
        children: dict[int, list[int]] = {}
        for process in everything.values():
            children.setdefault(process.parent, []).append(process.pid)
        waiting, members = [self.root], set()
        waiting += [process.pid for process in everything.values() if process.session == self.root]
        while waiting:
            pid = waiting.pop()
            if pid in everything and pid not in members:
                members.add(pid)
                waiting += children.get(pid, [])
        return [everything[pid] for pid in sorted(members)]

    def seconds(self) -> float:
        """User + system seconds so far, ended processes included."""
        return sum(process.seconds for process in self.members())

    def pss(self) -> int:
        """Proportional set size of all processes, in bytes."""
        return sum(pss_of(process.pid) for process in self.members())


@dataclass(frozen=True)
class JoinedTree(Tree):
    """Two servers charged together: a proxy, and the instance behind it."""

    second: Tree

    def members(self) -> list[Process]:
        return super().members() + self.second.members()


def pss_of(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that has ended."""
    return _rollup(pid, "Pss:")


def rss_of(pid: int) -> int:
    """Resident set size in bytes; 0 for a process that has ended."""
    return _rollup(pid, "Rss:")


def _rollup(pid: int, field: str) -> int:
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def answering(tree: Tree, port: int) -> set[int]:
    """Pids of those processes that hold an established connection to this TCP port (IPv4)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    return {member.pid for member in tree.members() if sockets & _descriptors(member.pid)}


def _descriptors(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # the process has ended, or a descriptor was closed meanwhile
        for path in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(path.readlink()))
    return found


def machine_time() -> tuple[float, float]:
    """Seconds that all cores together were busy, and that a hypervisor took from them: /proc/stat."""
    fields = list(map(int, Path("/proc/stat").read_text().split()[1:9]))
    user, nice, system, _idle, _wait, irq, softirq, stolen = fields
    return (user + nice + system + irq + softirq) * TICK, stolen * TICK


def shared_memory_of(pids: set[int]) -> set[Path]:
    """Files of /dev/shm that any of these processes maps."""
    found = set()
    for pid in pids:
        try:
            lines = Path("/proc", str(pid), "maps").read_text().splitlines()
        except OSError:
            continue
        found |= {Path(line.split(maxsplit=5)[5]) for line in lines if " /dev/shm/" in line}
    return {path for path in found if not path.name.endswith("(deleted)")}
