"""The memory usage of processes, in bytes. Reads /proc/PID/smaps_rollup.

RSS counts a shared page once for each process, PSS divides it among them.  Private memory is the part that
the end of the process would free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Bytes of one process."""

    rss: int = 0
    pss: int = 0
    private: int = 0


def measure(pid: int) -> MemoryUsage:
    """The usage of a process; all 0 if it has ended or may not be read."""
    sizes: dict[str, int] = {}
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open() as rollup:
            for line in rollup:
                name, _, rest = line.partition(":")
                if rest.endswith("kB\n"):
                    sizes[name] = int(rest.split()[0]) * 1024
    except OSError:
        return MemoryUsage()
    return MemoryUsage(
        rss=sizes.get("Rss", 0),
        pss=sizes.get("Pss", 0),
        private=sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0),
    )
