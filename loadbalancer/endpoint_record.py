"""One instance as the controller publishes it, for the proxies and for the next controller.

Pure.  The JSON keys are read by processes of other versions during a reload, so they must not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twofold.net.address import Address

UP, DOWN, DRAIN = "up", "down", "drain"
SETTINGS, FILE, DNS, ADMIN = "settings", "file", "dns", "admin"  # the sources that name instances

NOWHERE = Address()


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    name: str
    cell: int  # number of its cells in the shared memory
    state: str = UP
    workers: int = 0  # replicas that are ready; 0: unknown
    since_ns: int = 0  # monotonic time at which it recovered; 0: healthy from the start, or never
    where: Address = NOWHERE
    local: str = ""  # its abstract Unix socket, if it is on this machine and has one
    source: str = SETTINGS
    origin: str = ""  # the DNS name that resolved to it
    drained: bool = False  # the admin drains it
    leaving: bool = False  # it is removed when it has no outstanding requests
    healthy: bool = True
    was_healthy: bool = True
    why: str = ""  # the reason if it is not healthy

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell, "name": self.name, "kind": "unix" if self.where.is_unix else "tcp",
            "host": self.where.host, "port": self.where.port, "path": self.where.path, "local": self.local,
            "state": self.state, "workers": self.workers, "since_ns": self.since_ns, "source": self.source,
            "origin": self.origin, "drained": self.drained, "leaving": self.leaving, "well": self.healthy,
            "ever": self.was_healthy, "why": self.why,
        }  # fmt: skip


def from_json(given: Mapping[str, Any]) -> EndpointRecord:
    """Parse to_json() of this or another version. Raises KeyError, TypeError or ValueError."""
    healthy = bool(given.get("well", given["state"] == UP))
    return EndpointRecord(
        name=given["name"],
        cell=given["cell"],
        state=given["state"],
        workers=int(given["workers"]),
        since_ns=int(given["since_ns"]),
        where=Address(given["host"], given["port"], given["path"]),
        local=given.get("local", ""),
        source=given.get("source", SETTINGS),
        origin=given.get("origin", ""),
        drained=bool(given.get("drained", False)),
        leaving=bool(given.get("leaving", False)),
        healthy=healthy,
        was_healthy=healthy or bool(given.get("ever", given["since_ns"])),
        why=given.get("why", ""),
    )
