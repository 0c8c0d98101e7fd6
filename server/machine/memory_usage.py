"""How much memory processes really use: /proc/PID/smaps_rollup, in bytes.

RSS counts a shared page once for each process, PSS divides it among them, private counts only
what would come back if the process ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    rss: int = 0
    pss: int = 0
    private: int = 0


def measure(pid: int) -> MemoryUsage:
    """All zero for a process that is gone or not ours to see."""
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
